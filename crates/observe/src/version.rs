//! What this build is.

use serde::Serialize;

use crate::metrics::Registry;

/// Build information, in the shape of `version` in `/config_dump`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    /// Version of the program.
    pub version: &'static str,
    /// Source revision, when the build was told.
    pub git_revision: &'static str,
    /// `debug` or `release`.
    pub build_profile: &'static str,
    /// The Istio version we present ourselves as, when configured.
    pub istio_version: String,
}

impl Version {
    /// This build, presenting itself as `istio_version`.
    pub fn of(istio_version: &str) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            git_revision: option_env!("AMBIT_GIT_REVISION").unwrap_or("unknown"),
            build_profile: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
            istio_version: istio_version.to_owned(),
        }
    }

    /// Adds `istio_build{component, tag} 1`, by which Istio's dashboards tell versions apart.
    pub fn register(&self, component: &str, registry: &Registry) {
        let tag = if self.istio_version.is_empty() {
            self.version
        } else {
            &self.istio_version
        };
        registry.information("istio_build", "Istio component build info.", |labels| {
            labels.closed("component", component);
            labels.closed("tag", tag);
        });
    }
}
