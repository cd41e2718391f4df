use std::fs;
use std::sync::Arc;

use super::{Folder, is_manifest};

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

#[test]
fn reads_manifests_and_no_editors_leftovers() {
    for name in ["a.yaml", "a.yml", "a.json", "a.b.yaml"] {
        assert!(is_manifest(name), "{name}");
    }
    for name in [
        ".a.yaml",
        "a.yaml~",
        "#a.yaml#",
        ".#a.yaml",
        "a.yaml.swp",
        "4913",
        "a.txt",
    ] {
        assert!(!is_manifest(name), "{name}");
    }
}

#[test]
fn reads_folders_in_folders_and_links_but_nothing_hidden() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::create_dir_all(path.join("team/deep")).unwrap();
    fs::create_dir(path.join(".hidden")).unwrap();
    fs::write(path.join("a.yaml"), namespace("a")).unwrap();
    fs::write(path.join("team/deep/b.yaml"), namespace("b")).unwrap();
    fs::write(path.join(".hidden/c.yaml"), namespace("c")).unwrap();
    std::os::unix::fs::symlink(path.join(".hidden/c.yaml"), path.join("d.yaml")).unwrap();
    std::os::unix::fs::symlink(path, path.join("team/loop")).unwrap();
    let objects = Folder::new(path, None).read().unwrap();
    let names: Vec<String> = objects.namespaces.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[test]
fn an_unchanged_folder_is_the_same_snapshot() {
    let path = tempfile::tempdir().unwrap();
    fs::write(path.path().join("a.yaml"), namespace("a")).unwrap();
    fs::write(path.path().join("b.yaml"), [0xff, 0xfe]).unwrap();
    let mut folder = Folder::new(path.path(), None);
    let first = folder.read().unwrap();
    assert!(
        first.problems[0]
            .to_string()
            .ends_with("b.yaml: cannot be read: not UTF-8")
    );
    assert!(Arc::ptr_eq(&first, &folder.read().unwrap()));
}

#[test]
fn a_missing_folder_is_an_error() {
    let path = tempfile::tempdir().unwrap();
    assert!(Folder::new(&path.path().join("none"), None).read().is_err());
}
