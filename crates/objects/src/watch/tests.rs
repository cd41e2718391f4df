use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::Watch;
use crate::folder::Folder;
use crate::snapshot::Objects;
use crate::status::{PodStatus, REDIRECTION, Writer};

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

/// Snapshots until one fits. Well under the periodic look, so that only events can bring it.
async fn until(watch: &mut Watch, fits: impl Fn(&Objects) -> bool) {
    timeout(Duration::from_secs(5), async {
        while !fits(&*watch.next().await) {}
    })
    .await
    .unwrap();
}

fn has(objects: &Objects, names: &[&str]) -> bool {
    objects
        .namespaces
        .keys()
        .map(|name| name.name.as_str())
        .eq(names.iter().copied())
}

fn start(path: &Path) -> Watch {
    Watch::start(Folder::new(path, None)).unwrap()
}

#[tokio::test]
async fn follows_new_changed_renamed_and_removed_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut watch = start(path);
    until(&mut watch, |objects| has(objects, &[])).await;

    fs::write(path.join("a.yaml"), namespace("a")).unwrap();
    until(&mut watch, |objects| has(objects, &["a"])).await;

    fs::write(path.join(".new"), namespace("b")).unwrap();
    fs::rename(path.join(".new"), path.join("a.yaml")).unwrap();
    until(&mut watch, |objects| has(objects, &["b"])).await;

    fs::create_dir(path.join("team")).unwrap();
    fs::write(path.join("team/c.yaml"), namespace("c")).unwrap();
    until(&mut watch, |objects| has(objects, &["b", "c"])).await;
    fs::write(path.join("team/c.yaml"), namespace("d")).unwrap();
    until(&mut watch, |objects| has(objects, &["b", "d"])).await;

    fs::remove_file(path.join("a.yaml")).unwrap();
    until(&mut watch, |objects| has(objects, &["d"])).await;
}

#[tokio::test]
async fn follows_the_status_overlay_even_when_it_comes_later() {
    let folder = tempfile::tempdir().unwrap();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: shop}\n";
    fs::write(folder.path().join("pod.yaml"), pod).unwrap();
    let mut watch = start(folder.path());
    until(&mut watch, |objects| objects.pods.len() == 1).await;
    let writer = Writer::new(&folder.path().join(".status")).unwrap();
    for value in ["pending", "enabled"] {
        let name = crate::kinds::Name::new("shop", "web");
        writer
            .write(&PodStatus::new(&name, None, &[(REDIRECTION, value)]))
            .unwrap();
        until(&mut watch, |objects| {
            let annotations = objects
                .pods
                .values()
                .next()
                .unwrap()
                .metadata
                .annotations
                .as_ref();
            annotations
                .and_then(|all| all.get(REDIRECTION))
                .is_some_and(|is| is == value)
        })
        .await;
    }
}

#[tokio::test]
async fn what_changes_nothing_is_not_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.yaml"), namespace("a")).unwrap();
    let mut watch = start(folder.path());
    until(&mut watch, |objects| has(objects, &["a"])).await;
    fs::write(folder.path().join("a.yaml~"), namespace("b")).unwrap();
    fs::write(folder.path().join("a.yaml"), namespace("a")).unwrap();
    assert!(
        timeout(Duration::from_millis(800), watch.next())
            .await
            .is_err()
    );
}
