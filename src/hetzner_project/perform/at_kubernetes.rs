//! Steps that are a write to Kubernetes.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, api::ListParams};

use crate::{
    api::{FINALIZER, HetznerProject},
    context::Context,
    hetzner_project::{
        desired::Desired,
        observe::{Observed, shares},
        request::Failure,
    },
    kube_ext::{add_finalizer, call, remove_finalizer},
};

/// Steps at the API server.
pub(super) struct Kubernetes<'a> {
    pub(super) ctx: &'a Context,
    pub(super) project: &'a HetznerProject,
    pub(super) desired: &'a Desired,
    pub(super) observed: &'a Observed,
}

impl Kubernetes<'_> {
    fn projects(&self) -> Api<HetznerProject> {
        Api::all(self.ctx.clients.write.clone())
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(
            self.ctx.clients.write.clone(),
            &self.desired.token.namespace,
        )
    }

    pub(super) async fn add_finalizer(&self) -> Result<(), Failure> {
        add_finalizer(&self.projects(), self.project, FINALIZER).await?;
        Ok(())
    }

    pub(super) async fn hold_secret(&self) -> Result<(), Failure> {
        if let Some(secret) = &self.observed.secret {
            add_finalizer(&self.secrets(), secret, FINALIZER).await?;
        }
        Ok(())
    }

    pub(super) async fn release_secret(&self) -> Result<(), Failure> {
        match &self.observed.secret {
            Some(secret) => Ok(remove_finalizer(&self.secrets(), secret, FINALIZER).await?),
            None => Ok(()),
        }
    }

    /// The last of those who use the Secret releases it. Asked of the API server itself and one at a time, so that the last one knows.
    pub(super) async fn let_go(&self) -> Result<(), Failure> {
        let _alone = self.ctx.connections.leaving().await;
        let read: Api<HetznerProject> = Api::all(self.ctx.clients.read.clone());
        let all = call("LIST hetznerprojects", read.list(&ListParams::default())).await?;
        if !all
            .iter()
            .any(|other| shares(other, &self.desired.name, &self.desired.token))
        {
            self.release_secret().await?;
        }
        remove_finalizer(&self.projects(), self.project, FINALIZER).await?;
        self.ctx.connections.remove(&self.desired.name);
        Ok(())
    }
}
