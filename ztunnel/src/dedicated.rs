//! A proxy for one workload: a pod, or a machine that stands for one.
//!
//! It runs in the workload's own network namespace, is told by its settings whom it serves, and needs
//! neither an agent nor a capability. What leads connections to it is the business of whoever starts
//! it; see `deploy/one-workload`.

use std::sync::Arc;

use ambit_net::netns::Netns;
use ambit_runtime::ready::Readiness;
use ambit_runtime::tasks;

use crate::config::Only;
use crate::inpod::Status;
use crate::inpod::reconcile::{PodInfo, Wanted};
use crate::pods::{PodNetns, Pods, StartError};

/// Binds the workload's sockets, and serves it as soon as the mesh is known: before that, a
/// destination of the mesh would be taken for one outside. What connects meanwhile waits.
///
/// # Errors
/// Its sockets cannot be bound.
pub(crate) fn start(
    only: &Only,
    pods: &Pods,
    status: Status,
    started: Readiness,
) -> Result<(), StartError> {
    let pod = || format!("{}/{}", only.namespace, only.name);
    let netns = Netns::current().map_err(|why| StartError::Sockets { pod: pod(), why })?;
    let bound = pods.bind(&Wanted {
        // Nobody else gives pods names here.
        uid: pod(),
        info: PodInfo {
            name: only.name.clone(),
            namespace: only.namespace.clone(),
            service_account: only.service_account.clone(),
        },
        netns: PodNetns(Arc::new(netns)),
    })?;
    let pods = pods.clone();
    drop(tasks::spawn("only workload", async move {
        started.wait().await;
        match pods.start_bound(bound).await {
            Ok(()) => status.serves_its_only(),
            Err(error) => tracing::error!(%error, "the workload is not served"),
        }
    }));
    Ok(())
}
