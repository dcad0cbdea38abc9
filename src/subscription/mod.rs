//! `Subscription`: what a customer has paid for is what runs.

pub mod entitlement;
