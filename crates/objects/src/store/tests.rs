use std::collections::BTreeMap;
use std::path::PathBuf;

use proptest::prelude::{Strategy, prop, proptest};

use super::{Content, Store};
use crate::kinds::Name;
use crate::snapshot::Objects;

fn namespace(name: &str, label: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{v: '{label}'}}\n"
    )
}

fn folder(files: &[(&str, &str)]) -> BTreeMap<PathBuf, Content> {
    files
        .iter()
        .map(|(name, text)| (PathBuf::from(name), Content::Text((*text).to_owned())))
        .collect()
}

fn labels(objects: &Objects) -> Vec<String> {
    let label = |name: &Name| {
        let labels = objects.namespaces[name].metadata.labels.as_ref();
        labels
            .and_then(|labels| labels.get("v").cloned())
            .unwrap_or_default()
    };
    objects
        .namespaces
        .keys()
        .map(|name| format!("{name}={}", label(name)))
        .collect()
}

#[test]
fn the_last_accepted_version_stays_in_force() {
    let mut store = Store::default();
    let good = format!("{}---\n{}", namespace("a", "1"), namespace("b", "1"));
    assert_eq!(
        labels(&store.load(folder(&[("x.yaml", &good)]))),
        ["a=1", "b=1"]
    );

    let broken_a = format!("{}  [\n---\n{}", namespace("a", "2"), namespace("b", "2"));
    let objects = store.load(folder(&[("x.yaml", &broken_a)]));
    assert_eq!(labels(&objects), ["a=1", "b=2"]);
    assert_eq!(objects.problems.len(), 1);

    let objects = store.load(folder(&[("x.yaml", &namespace("a", "3"))]));
    assert_eq!(labels(&objects), ["a=3"]);
    assert_eq!(objects.problems, []);
}

#[test]
fn a_file_that_is_no_yaml_at_all_removes_nothing() {
    let mut store = Store::default();
    let good = namespace("a", "1");
    store.load(folder(&[
        ("x.yaml", &good),
        ("y.yaml", &namespace("b", "1")),
    ]));
    let objects = store.load(folder(&[
        ("x.yaml", "kind: {"),
        ("y.yaml", &namespace("b", "2")),
    ]));
    assert_eq!(labels(&objects), ["a=1", "b=2"]);

    let mut unreadable = folder(&[("y.yaml", &namespace("b", "3"))]);
    unreadable.insert(
        "x.yaml".into(),
        Content::Unreadable("permission denied".into()),
    );
    let objects = store.load(unreadable);
    assert_eq!(labels(&objects), ["a=1", "b=3"]);
    assert_eq!(
        objects.problems[0].to_string(),
        "x.yaml: cannot be read: permission denied"
    );
}

#[test]
fn an_object_goes_with_its_document_and_stays_when_it_moves() {
    let mut store = Store::default();
    store.load(folder(&[
        ("x.yaml", &namespace("a", "1")),
        ("y.yaml", &namespace("b", "1")),
    ]));
    assert_eq!(
        labels(&store.load(folder(&[("z.yaml", &namespace("a", "1"))]))),
        ["a=1"]
    );
    assert_eq!(labels(&store.load(folder(&[]))), Vec::<String>::new());
}

#[test]
fn of_two_definitions_the_first_file_decides() {
    let mut store = Store::default();
    let objects = store.load(folder(&[
        ("y.yaml", &namespace("a", "2")),
        ("x.yaml", &namespace("a", "1")),
    ]));
    assert_eq!(labels(&objects), ["a=1"]);
    assert_eq!(
        objects.problems[0].to_string(),
        "y.yaml:1: metadata.name: Namespace a is already defined in x.yaml; this one is ignored"
    );
}

fn texts() -> impl Strategy<Value = Vec<(u8, u8, u8)>> {
    prop::collection::vec((0..3_u8, 0..4_u8, 0..3_u8), 0..12)
}

proptest! {
    /// However the folder came to be what it is, good files mean the same objects.
    #[test]
    fn the_way_to_a_good_folder_leaves_no_trace(steps in texts()) {
        let mut store = Store::default();
        let mut now = BTreeMap::new();
        for (file, name, label) in steps {
            let text = if label == 0 {
                "kind: [".to_owned()
            } else {
                namespace(&format!("n{name}"), &label.to_string())
            };
            now.insert(PathBuf::from(format!("{file}.yaml")), Content::Text(text));
            store.load(now.clone());
        }
        now.retain(|_, content| *content != Content::Text("kind: [".to_owned()));
        proptest::prop_assert_eq!(store.load(now.clone()), Store::default().load(now));
    }
}
