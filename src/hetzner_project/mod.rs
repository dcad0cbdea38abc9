//! `HetznerProject`: one project at Hetzner, its token, its limits.

pub mod connection;
/// stub
pub async fn reconcile(
    _: std::sync::Arc<crate::api::HetznerProject>,
    _: std::sync::Arc<crate::context::Context>,
) -> Result<kube::runtime::controller::Action, crate::kube_ext::CallError> {
    Ok(kube::runtime::controller::Action::await_change())
}
/// stub
pub fn error_policy(
    _: std::sync::Arc<crate::api::HetznerProject>,
    _: &crate::kube_ext::CallError,
    _: std::sync::Arc<crate::context::Context>,
) -> kube::runtime::controller::Action {
    kube::runtime::controller::Action::await_change()
}
