//! From the objects in force to one task per pod of this node.
//!
//! Pods are told apart by uid, so a pod that was made again under the same name is another pod. A pod that is no longer there is
//! wished gone; its task ends when nothing of it is left.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ambit_net::netns::Netns;
use ambit_objects::Objects;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::enrol::Labels;
use crate::pod::plan::Want;
use crate::pod::{self, Settings, Shared, Wish};
use crate::redirect;

/// The tasks of all pods of this node.
#[derive(Debug)]
pub struct Reconciler {
    shared: Arc<Shared>,
    settings: Settings,
    tasks: BTreeMap<String, Task>,
}

#[derive(Debug)]
struct Task {
    wishes: watch::Sender<Wish>,
    handle: JoinHandle<()>,
}

impl Reconciler {
    /// No pods yet.
    #[must_use]
    pub fn new(shared: Arc<Shared>, settings: Settings) -> Self {
        Self {
            shared,
            settings,
            tasks: BTreeMap::new(),
        }
    }

    /// Brings the tasks in line with the objects. Returns what to wait for until each new pod was looked at once.
    pub fn apply(&mut self, objects: &Objects) -> Vec<oneshot::Receiver<()>> {
        let wishes = wishes(objects, &self.shared.node, &self.settings);
        let mut looking = Vec::new();
        for (uid, task) in &self.tasks {
            if !wishes.contains_key(uid) {
                task.wishes.send_if_modified(|wish| {
                    let changed = wish.want != Want::Gone;
                    *wish = wish.clone().gone();
                    changed
                });
            }
        }
        self.tasks
            .retain(|uid, task| wishes.contains_key(uid) || !task.handle.is_finished());
        for (uid, wish) in wishes {
            match self.tasks.get(&uid) {
                Some(task) if !task.handle.is_finished() => {
                    task.wishes.send_if_modified(|current| {
                        let changed = *current != wish;
                        *current = wish;
                        changed
                    });
                }
                _ => {
                    let (sender, receiver) = watch::channel(wish);
                    let (looked, looking_at) = oneshot::channel();
                    let handle = pod::start(Arc::clone(&self.shared), receiver, looked);
                    self.tasks.insert(
                        uid,
                        Task {
                            wishes: sender,
                            handle,
                        },
                    );
                    looking.push(looking_at);
                }
            }
        }
        looking
    }

    /// Removes rules that this node's agent once made for pods that are not known any more, in the namespaces named in `folder`.
    pub fn sweep(&self, folder: &Path) {
        for (path, netns) in namespaces(folder) {
            let Ok(Some(Some(owner))) = redirect::owner(&netns) else {
                continue;
            };
            let known = self.tasks.keys().any(|uid| self.shared.owner(uid) == owner);
            if known || !owner.same_agent(&self.shared.owner("")) {
                continue;
            }
            match redirect::remove(&netns) {
                Ok(()) => tracing::info!(%path, pod = owner.uid, "rules of a former pod removed"),
                Err(error) => tracing::warn!(%path, %error, "rules could not be removed"),
            }
        }
    }
}

/// The wishes for all pods of a node, by uid.
fn wishes(objects: &Objects, node: &str, settings: &Settings) -> BTreeMap<String, Wish> {
    let none = Labels::new();
    let mut wishes = BTreeMap::new();
    for (name, pod) in &objects.pods {
        if pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) != Some(node) {
            continue;
        }
        let namespace = objects
            .namespaces
            .iter()
            .find(|(key, _)| key.name == name.namespace);
        let labels = namespace.and_then(|(_, namespace)| namespace.metadata.labels.as_ref());
        let wish = Wish::of(name, pod, labels.unwrap_or(&none), settings);
        if wishes.contains_key(&wish.uid) {
            tracing::warn!(pod = %name, uid = wish.uid, "another pod has this uid; this one is ignored");
            continue;
        }
        wishes.insert(wish.uid.clone(), wish);
    }
    wishes
}

/// The network namespaces that have a name in `folder`.
pub(crate) fn namespaces(folder: &Path) -> Vec<(String, Netns)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let path = entry.path();
            Some((path.display().to_string(), Netns::open(&path).ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ambit_objects::Objects;

    use super::wishes;
    use crate::enrol::Policy;
    use crate::pod::Settings;
    use crate::pod::plan::Want;
    use crate::rules::Options;

    #[test]
    fn only_pods_of_this_node_are_taken_each_with_the_labels_of_its_namespace() {
        let pod = |name: &str, namespace: &str, node: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
                 spec: {{nodeName: {node}, containers: [{{name: c}}]}}\n---\n"
            )
        };
        let text = [
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n---\n",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n---\n",
            &pod("web", "shop", "n1"),
            &pod("far", "shop", "n2"),
            &pod("plain", "other", "n1"),
            &pod("lost", "nowhere", "n1"),
        ]
        .concat();
        let objects = Objects::from_text(Path::new("test.yaml"), &text);
        assert_eq!(objects.problems, []);
        let settings = Settings {
            policy: Policy::default(),
            options: Options::default(),
        };
        let found: Vec<_> = wishes(&objects, "n1", &settings)
            .into_values()
            .map(|wish| (wish.name.name, wish.want))
            .collect();
        let expected = [("lost", Want::Out), ("plain", Want::Out), ("web", Want::In)]
            .map(|(n, w)| (n.to_owned(), w));
        assert_eq!(found, expected);
    }
}
