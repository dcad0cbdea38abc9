//! Metrics with their names, help and labels, said once: the registry and the table in the docs are both made of this.

use std::borrow::Cow;

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::Histogram,
    },
    registry::{Metric, Registry},
};

/// The value of a label.
pub type Value = Cow<'static, str>;
/// The labels of one series, in the order of their declaration.
type Series<const N: usize> = [(&'static str, Value); N];

/// What is said of one metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declared {
    /// Name, as it is scraped.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Names of the labels.
    pub labels: &'static [&'static str],
    /// What it means, without a full stop.
    pub help: &'static str,
}

/// A registry under construction, and what was said of each metric.
#[derive(Debug, Default)]
pub struct Declaring {
    /// The registry.
    pub registry: Registry,
    /// What was declared so far.
    pub declared: Vec<Declared>,
}

impl Declaring {
    /// A number that only grows; its name ends with `_total`.
    pub fn counters<const N: usize>(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str; N],
        help: &'static str,
    ) -> Counters<N> {
        let family = Family::default();
        self.declare("counter", name, labels, help, family.clone());
        Counters { labels, family }
    }

    /// A number of the present.
    pub fn gauges<const N: usize>(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str; N],
        help: &'static str,
    ) -> Gauges<N> {
        let family = Family::default();
        self.declare("gauge", name, labels, help, family.clone());
        Gauges { labels, family }
    }

    /// A number of the present of which there is one.
    pub fn gauge(&mut self, name: &'static str, help: &'static str) -> Gauge {
        let gauge = Gauge::default();
        self.declare("gauge", name, &[], help, gauge.clone());
        gauge
    }

    /// How long something takes, in seconds, counted by the upper bounds `buckets`.
    pub fn histograms<const N: usize>(
        &mut self,
        name: &'static str,
        labels: &'static [&'static str; N],
        buckets: &'static [f64],
        help: &'static str,
    ) -> Histograms<N> {
        let family = Family::new_with_constructor(Buckets(buckets));
        self.declare("histogram", name, labels, help, family.clone());
        Histograms { labels, family }
    }

    fn declare(
        &mut self,
        kind: &'static str,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        metric: impl Metric,
    ) {
        // The encoder writes `_total` of itself.
        let bare = name.strip_suffix("_total").unwrap_or(name);
        self.registry.register(bare, help, metric);
        self.declared.push(Declared {
            name,
            kind,
            labels,
            help,
        });
    }
}

fn series<const N: usize>(labels: [&'static str; N], values: [Value; N]) -> Series<N> {
    let mut values = values.into_iter();
    labels.map(|label| (label, values.next().unwrap_or_default()))
}

/// Counters of one name.
#[derive(Debug)]
pub struct Counters<const N: usize> {
    labels: &'static [&'static str; N],
    family: Family<Series<N>, Counter>,
}

impl<const N: usize> Counters<N> {
    /// Counts one.
    pub fn add(&self, values: [Value; N]) {
        self.family
            .get_or_create(&series(*self.labels, values))
            .inc();
    }
}

/// Gauges of one name.
#[derive(Debug)]
pub struct Gauges<const N: usize> {
    labels: &'static [&'static str; N],
    family: Family<Series<N>, Gauge>,
}

impl<const N: usize> Gauges<N> {
    /// Forgets all series.
    pub fn clear(&self) {
        self.family.clear();
    }

    /// Sets one; what does not fit is the largest that does.
    pub fn set(&self, values: [Value; N], to: impl TryInto<i64>) {
        self.family
            .get_or_create(&series(*self.labels, values))
            .set(to.try_into().unwrap_or(i64::MAX));
    }

    /// Adds one.
    pub fn add(&self, values: [Value; N]) {
        self.family
            .get_or_create(&series(*self.labels, values))
            .inc();
    }
}

#[derive(Clone, Copy, Debug)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// Histograms of one name.
#[derive(Debug)]
pub struct Histograms<const N: usize> {
    labels: &'static [&'static str; N],
    family: Family<Series<N>, Histogram, Buckets>,
}

impl<const N: usize> Histograms<N> {
    /// Counts something that took so many seconds.
    pub fn observe(&self, values: [Value; N], seconds: f64) {
        self.family
            .get_or_create(&series(*self.labels, values))
            .observe(seconds);
    }
}
