//! The status overlay: what the node agent says about pods when there is no Kubernetes API to say
//! it to.
//!
//! One small file per pod in a folder beside the manifests, a merge patch of the pod's annotations.
//! Files are replaced by rename, so a reader sees the old one or the new one and never a part.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use crate::kinds::Name;
use crate::problem::{Problem, Severity};
use crate::snapshot::Objects;
use crate::store::Content;

/// Annotation that says whether the pod's traffic is redirected.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// What the overlay says about one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    api_version: String,
    kind: String,
    /// Which pod, and its annotations.
    pub metadata: PodStatusMetadata,
}

/// Which pod, and its annotations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatusMetadata {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid; when both have one they must be equal, else the overlay is of an older pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Annotations to set; null removes.
    #[serde(default)]
    pub annotations: BTreeMap<String, Option<String>>,
}

impl PodStatus {
    /// A status that sets `annotations` on one pod.
    pub fn new(pod: &Name, uid: Option<&str>, annotations: &[(&str, &str)]) -> Self {
        Self {
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            metadata: PodStatusMetadata {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: uid.map(str::to_owned),
                annotations: annotations
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), Some((*value).to_owned())))
                    .collect(),
            },
        }
    }

    fn name(&self) -> Name {
        Name::new(&self.metadata.namespace, &self.metadata.name)
    }

    fn is_about(&self, pod: &Pod) -> bool {
        match (&self.metadata.uid, &pod.metadata.uid) {
            (Some(ours), Some(its)) => ours == its,
            _ => true,
        }
    }

    fn applied(&self, pod: &Pod) -> Pod {
        let mut pod = pod.clone();
        let annotations = pod.metadata.annotations.get_or_insert_default();
        for (key, value) in &self.metadata.annotations {
            match value {
                Some(value) => drop(annotations.insert(key.clone(), value.clone())),
                None => drop(annotations.remove(key)),
            }
        }
        pod
    }
}

/// Applies every status file to `objects`.
pub(crate) fn apply(objects: &mut Objects, files: &BTreeMap<PathBuf, Content>) {
    for (file, content) in files {
        let read = match content {
            Content::Text(text) => serde_json::from_str::<PodStatus>(text)
                .map_err(|error| format!("not a pod status: {error}")),
            Content::Unreadable(reason) => Err(format!("cannot be read: {reason}")),
        };
        match read {
            Ok(status) => {
                if let Some(pod) = objects.pods.get_mut(&status.name())
                    && status.is_about(pod)
                {
                    *pod = Arc::new(status.applied(pod));
                }
            }
            Err(message) => objects.problems.push(Problem {
                file: file.clone(),
                line: 0,
                field: String::new(),
                message,
                severity: Severity::Error,
            }),
        }
    }
}

/// Writes the overlay. One writer per pod; writers of different pods do not disturb each other.
#[derive(Clone, Debug)]
pub struct Writer {
    folder: PathBuf,
}

impl Writer {
    /// Makes the folder if it is missing.
    ///
    /// # Errors
    /// What the file system says.
    pub fn new(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Writes the status of one pod in place of what was there.
    ///
    /// # Errors
    /// What the file system says; the old status is then still there.
    pub fn write(&self, status: &PodStatus) -> io::Result<()> {
        let file = self.file(&status.name())?;
        let mut text = serde_json::to_string_pretty(status).map_err(io::Error::other)?;
        text.push('\n');
        if std::fs::read_to_string(&file).is_ok_and(|old| old == text) {
            return Ok(());
        }
        let temporary = file.with_extension(format!("tmp{}", std::process::id()));
        std::fs::write(&temporary, text)?;
        std::fs::rename(&temporary, &file)
    }

    /// Removes the status of one pod; nothing happens when there is none.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(&self, pod: &Name) -> io::Result<()> {
        match std::fs::remove_file(self.file(pod)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn file(&self, pod: &Name) -> io::Result<PathBuf> {
        let safe = |part: &str| {
            !part.is_empty() && !part.starts_with('.') && !part.contains(['/', '\\', '\0'])
        };
        if !safe(&pod.namespace) || !safe(&pod.name) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a pod's name",
            ));
        }
        // Neither part can hold an underscore, so no two pods share a file.
        Ok(self
            .folder
            .join(format!("{}_{}.json", pod.namespace, pod.name)))
    }
}

#[cfg(test)]
mod tests;
