//! Who issues the certificates: an authority of Istio's contract, or the SPIRE agent of this machine.

use std::sync::Arc;

use ambit_control::{Channel, LocalChannel};
use ambit_identity::spire::{AgentSockets, SpireIssuer};
use ambit_identity::{CaIssuer, Renewer};
use ambit_model::identity::Identity;
use ambit_observe::metrics::Registry;
use ambit_runtime::tasks;
use ambit_tls::Terms;
use anyhow::Context;

use crate::app::control_plane;
use crate::config::{Settings, Spire};
use crate::worker::Shared;

/// Keeps the certificates of this process up to date from now on.
///
/// # Errors
/// The authority's address cannot be one.
pub(crate) fn start(
    shared: &Arc<Shared>,
    registry: &Registry,
    renewer: Renewer,
) -> anyhow::Result<()> {
    let settings = &shared.settings;
    let terms = Terms {
        key_exchange: settings.compliance_policy.key_exchange(),
        revocations: shared.revocation.lists.clone(),
    };
    if let Some(spire) = &settings.spire {
        let (issuer, roots) = SpireIssuer::new(sockets(spire, settings), terms);
        roots.register(registry);
        drop(tasks::spawn("trust bundles", Box::pin(roots.run())));
        drop(tasks::spawn("certificates", Box::pin(renewer.run(issuer))));
        return Ok(());
    }
    let authority =
        Channel::connect(&control_plane(settings, &settings.ca)).context("CA_ADDRESS")?;
    // For a proxy of one workload, its token says whose certificate it may have.
    let on_behalf = settings.only().is_none();
    let issuer = CaIssuer::new(authority, settings.secret_ttl, on_behalf).on(terms);
    drop(tasks::spawn("certificates", Box::pin(renewer.run(issuer))));
    Ok(())
}

fn sockets(spire: &Spire, settings: &Settings) -> AgentSockets<LocalChannel> {
    let (domain, account) = (&settings.trust_domain, &settings.service_account);
    // Without a namespace and an account the proxy serves nobody under a name of its own.
    let own = Identity::new(domain, &settings.pod_namespace, account).ok();
    let workload = spire.workload.as_deref().map(LocalChannel::connect);
    AgentSockets {
        admin: LocalChannel::connect(&spire.admin),
        workload: workload.zip(own),
    }
}
