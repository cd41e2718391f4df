//! This program's own certificate: SPIFFE's Workload API.
//!
//! Source: SPIFFE Workload API, section 5 (X.509-SVID profile); SPIFFE Workload Endpoint, section 4 (the metadata of every
//! call). Revocation lists that come with an answer are not used: `CRL_PATH` says which are in force.

use std::sync::Arc;

use ambit_model::identity::Identity;
use ambit_proto::spiffe::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use ambit_proto::spiffe::workload::{X509svidRequest, X509svidResponse};
use ambit_tls::csr::PrivateKey;
use ambit_tls::{Svid, Terms, TrustBundles};
use futures_util::stream::{self, BoxStream, StreamExt};
use tonic::metadata::MetadataValue;
use tonic::{Request, Streaming};

use super::{AgentChannel, AgentError, MAX_MESSAGE, SCHEME};
use crate::issuer::IssueError;

/// Without it the agent refuses: a request that some program was tricked into making does not carry it.
const SECURITY_METADATA: &str = "workload.spiffe.io";

/// The certificates of `own`, each as it comes.
pub(super) async fn fetch<C: AgentChannel>(
    channel: C,
    own: &Identity,
    terms: Terms,
) -> Result<BoxStream<'static, Result<Arc<Svid>, IssueError>>, AgentError> {
    let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut request = Request::new(X509svidRequest {});
    let metadata = request.metadata_mut();
    metadata.insert(SECURITY_METADATA, MetadataValue::from_static("true"));
    let answers = client.fetch_x509svid(request).await;
    let answers = answers.map_err(AgentError::of)?.into_inner();
    let own = own.clone();
    let certificates = stream::unfold(Some(answers), move |answers| {
        let (own, terms) = (own.clone(), terms.clone());
        async move { next(answers?, &own, &terms).await }
    });
    Ok(certificates.boxed())
}

type Answers = Streaming<X509svidResponse>;

async fn next(
    mut answers: Answers,
    own: &Identity,
    terms: &Terms,
) -> Option<(Result<Arc<Svid>, IssueError>, Option<Answers>)> {
    match answers.message().await {
        Ok(Some(answer)) => Some((read(&answer, own, terms).map_err(Into::into), Some(answers))),
        Ok(None) => None,
        Err(status) => Some((Err(AgentError::of(status).into()), None)),
    }
}

/// The certificate of `own` with the roots that came beside it.
fn read(answer: &X509svidResponse, own: &Identity, terms: &Terms) -> Result<Arc<Svid>, AgentError> {
    let found = answer
        .svids
        .iter()
        .find(|svid| svid.spiffe_id == own.as_str());
    let found = found.ok_or_else(|| {
        AgentError::not_registered(own, answer.svids.iter().map(|svid| svid.spiffe_id.clone()))
    })?;
    let mut trust = TrustBundles::default();
    trust
        .insert(own.trust_domain(), &found.bundle)
        .map_err(AgentError::Answer)?;
    for (id, roots) in &answer.federated_bundles {
        let domain = id.strip_prefix(SCHEME).unwrap_or(id);
        if domain == own.trust_domain() {
            continue; // ours are those that came with the certificate
        }
        if let Err(error) = trust.insert(domain, roots) {
            tracing::warn!(domain, %error, "a federated trust domain is left out");
        }
    }
    let key = PrivateKey::from_pkcs8(&found.x509_svid_key).map_err(AgentError::Answer)?;
    Svid::from_der(&key, &found.x509_svid, &trust, terms).map_err(AgentError::Answer)
}
