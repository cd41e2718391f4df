//! Certificates of the pods: SPIRE's Delegated Identity API.

use std::sync::Arc;

use ambit_model::identity::Identity;
use ambit_proto::spire::delegated::delegated_identity_client::DelegatedIdentityClient;
use ambit_proto::spire::delegated::{
    SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse, X509svidWithKey,
};
use ambit_proto::spire::types::{Selector, X509svid};
use ambit_tls::csr::PrivateKey;
use ambit_tls::{Svid, Terms, TrustBundles};
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tonic::Streaming;

use super::{AgentChannel, AgentError, MAX_MESSAGE, SCHEME};
use crate::issuer::{IssueError, Subject};

/// The agent's attestor of pods, whose findings the selectors are.
const ATTESTOR: &str = "k8s";

/// The certificates of `subject`, each as it comes: anew also when the roots change.
pub(super) async fn subscribe<C: AgentChannel>(
    channel: C,
    subject: &Subject,
    bundles: watch::Receiver<Option<Arc<TrustBundles>>>,
    terms: Terms,
) -> Result<BoxStream<'static, Result<Arc<Svid>, IssueError>>, AgentError> {
    let mut client = DelegatedIdentityClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let request = SubscribeToX509sviDsRequest {
        selectors: selectors(subject),
        pid: 0,
    };
    let answers = client.subscribe_to_x509svi_ds(request).await;
    let subscription = Subscription {
        answers: answers.map_err(AgentError::of)?.into_inner(),
        bundles,
        last: None,
        identity: subject.identity.clone(),
        terms,
    };
    Ok(stream::unfold(Some(subscription), |open| async move { open?.next().await }).boxed())
}

/// What the pods of `subject` are like.
fn selectors(subject: &Subject) -> Vec<Selector> {
    let identity = &subject.identity;
    let account = [
        format!("ns:{}", identity.namespace()),
        format!("sa:{}", identity.service_account()),
    ];
    let pods = subject.pods.iter().map(|uid| format!("pod-uid:{uid}"));
    let values = account.into_iter().chain(pods);
    let selector = |value| Selector {
        r#type: ATTESTOR.to_owned(),
        value,
    };
    values.map(selector).collect()
}

struct Subscription {
    answers: Streaming<SubscribeToX509sviDsResponse>,
    bundles: watch::Receiver<Option<Arc<TrustBundles>>>,
    last: Option<SubscribeToX509sviDsResponse>,
    identity: Identity,
    terms: Terms,
}

impl Subscription {
    async fn next(mut self) -> Option<(Result<Arc<Svid>, IssueError>, Option<Self>)> {
        loop {
            tokio::select! {
                answer = self.answers.message() => match answer {
                    Ok(Some(answer)) => self.last = Some(answer),
                    Ok(None) => return None,
                    Err(status) => return Some((Err(AgentError::of(status).into()), None)),
                },
                // An error says that nobody keeps the roots any more: those there are stay.
                Ok(()) = self.bundles.changed() => {}
            }
            let bundles = self.bundles.borrow_and_update().clone();
            if let Some((answer, bundles)) = self.last.as_ref().zip(bundles) {
                let told = read(answer, &self.identity, &bundles, &self.terms);
                return Some((told.map_err(Into::into), Some(self)));
            }
        }
    }
}

/// The certificate of `identity` with the roots it may be used with.
fn read(
    answer: &SubscribeToX509sviDsResponse,
    identity: &Identity,
    bundles: &TrustBundles,
    terms: &Terms,
) -> Result<Arc<Svid>, AgentError> {
    let found = newest(&answer.x509_svids, identity).ok_or_else(|| {
        let offered = answer
            .x509_svids
            .iter()
            .filter_map(|one| one.x509_svid.as_ref());
        AgentError::not_registered(identity, offered.map(id))
    })?;
    let (svid, key) = found;
    let own = identity.trust_domain();
    let federated: Vec<_> = answer
        .federates_with
        .iter()
        .map(|id| id.strip_prefix(SCHEME).unwrap_or(id))
        .collect();
    let trust = bundles.only(|domain| domain == own || federated.contains(&domain));
    if !trust.contains(own) {
        return Err(AgentError::NoBundle(own.to_owned()));
    }
    let key = PrivateKey::from_pkcs8(key).map_err(AgentError::Answer)?;
    Svid::from_der(&key, &svid.cert_chain.concat(), &trust, terms).map_err(AgentError::Answer)
}

/// Of several registrations of one identity, that whose certificate lives longest.
fn newest<'a>(
    offered: &'a [X509svidWithKey],
    identity: &Identity,
) -> Option<(&'a X509svid, &'a [u8])> {
    let each = offered.iter().filter_map(|one| {
        let svid = one.x509_svid.as_ref()?;
        (id(svid) == identity.as_str()).then_some((svid, one.x509_svid_key.as_slice()))
    });
    // The chain decides between equals, so that an order that changes changes nothing.
    each.max_by_key(|(svid, _)| (svid.expires_at, &svid.cert_chain))
}

fn id(svid: &X509svid) -> String {
    let id = svid.id.as_ref();
    let (domain, path) = id.map_or(("", ""), |id| (&id.trust_domain, &id.path));
    format!(
        "{SCHEME}{domain}/{}",
        path.strip_prefix('/').unwrap_or(path)
    )
}
