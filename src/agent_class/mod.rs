//! `AgentClass`: what to run and on which machine.
/// stub
pub async fn reconcile(
    _: std::sync::Arc<crate::api::AgentClass>,
    _: std::sync::Arc<crate::context::Context>,
) -> Result<kube::runtime::controller::Action, crate::kube_ext::CallError> {
    Ok(kube::runtime::controller::Action::await_change())
}
/// stub
pub fn error_policy(
    _: std::sync::Arc<crate::api::AgentClass>,
    _: &crate::kube_ext::CallError,
    _: std::sync::Arc<crate::context::Context>,
) -> kube::runtime::controller::Action {
    kube::runtime::controller::Action::await_change()
}
