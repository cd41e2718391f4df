use std::path::Path;

use super::{PodStatus, REDIRECTION, Writer};
use crate::folder::Folder;
use crate::kinds::Name;
use crate::snapshot::Objects;

fn redirection(objects: &Objects) -> Option<String> {
    let pod = &objects.pods[&Name::new("shop", "web")];
    pod.metadata.annotations.as_ref()?.get(REDIRECTION).cloned()
}

fn manifests() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("web.yaml"),
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop, uid: u1}\n",
    )
    .unwrap();
    folder
}

#[test]
fn what_the_writer_says_shows_on_the_pod() {
    let manifests = manifests();
    let mut folder = Folder::new(manifests.path(), None);
    let writer = Writer::new(folder.overlay()).unwrap();
    let pod = Name::new("shop", "web");
    assert_eq!(redirection(&folder.read().unwrap()), None);

    writer
        .write(&PodStatus::new(
            &pod,
            Some("u1"),
            &[(REDIRECTION, "enabled")],
        ))
        .unwrap();
    assert_eq!(
        redirection(&folder.read().unwrap()).as_deref(),
        Some("enabled")
    );

    let mut removal = PodStatus::new(&pod, None, &[]);
    removal
        .metadata
        .annotations
        .insert(REDIRECTION.to_owned(), None);
    writer.write(&removal).unwrap();
    assert_eq!(redirection(&folder.read().unwrap()), None);

    writer
        .write(&PodStatus::new(&pod, None, &[(REDIRECTION, "pending")]))
        .unwrap();
    assert_eq!(
        redirection(&folder.read().unwrap()).as_deref(),
        Some("pending")
    );
    writer.remove(&pod).unwrap();
    writer.remove(&pod).unwrap();
    assert_eq!(redirection(&folder.read().unwrap()), None);
}

#[test]
fn a_status_of_an_older_pod_of_that_name_is_not_applied() {
    let manifests = manifests();
    let mut folder = Folder::new(manifests.path(), None);
    let writer = Writer::new(folder.overlay()).unwrap();
    let pod = Name::new("shop", "web");
    writer
        .write(&PodStatus::new(
            &pod,
            Some("u0"),
            &[(REDIRECTION, "enabled")],
        ))
        .unwrap();
    assert_eq!(redirection(&folder.read().unwrap()), None);
}

#[test]
fn a_broken_status_is_a_problem_and_nothing_else() {
    let manifests = manifests();
    let mut folder = Folder::new(manifests.path(), None);
    Writer::new(folder.overlay()).unwrap();
    std::fs::write(folder.overlay().join("shop_web.json"), "{").unwrap();
    let objects = folder.read().unwrap();
    assert_eq!(objects.pods.len(), 1);
    assert!(
        objects.problems[0]
            .to_string()
            .contains("shop_web.json: not a pod status")
    );
}

#[test]
fn a_pod_name_cannot_leave_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let writer = Writer::new(folder.path()).unwrap();
    for (namespace, name) in [
        ("..", "a"),
        ("a", "../b"),
        ("a/b", "c"),
        ("", "a"),
        ("a", ""),
    ] {
        let status = PodStatus::new(&Name::new(namespace, name), None, &[]);
        assert!(writer.write(&status).is_err(), "{namespace:?} {name:?}");
    }
    assert!(!Path::new("..").join("a.json").exists());
}
