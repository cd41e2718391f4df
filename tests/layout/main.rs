//! The shape of the workspace, checked: which crate may depend on which, where `unsafe` may stand, how long a file
//! may grow. `ARCHITECTURE.md` explains the table; this is the table.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Layers from the bottom. A crate may depend only on crates of lower layers, and on those its line names within
/// its own layer (none: so that no two crates of one layer know each other).
const LAYERS: &[(&str, &[&str])] = &[
    ("L0 wires", &["ambit-proto", "ambit-wire", "ambit-net"]),
    ("L0 model", &["ambit-model"]),
    ("L0 names", &["ambit-dns"]),
    (
        "L1",
        &["ambit-runtime", "ambit-relay", "ambit-tls", "ambit-objects"],
    ),
    ("L2", &["ambit-control", "ambit-hbone", "ambit-observe"]),
    ("L3", &["ambit-identity", "ambit-xds", "ambit-otlp"]),
    (
        "L4 programs",
        &[
            "ambit-ztunnel",
            "ambit-agent",
            "ambit-waypoint",
            "ambit-controller",
            "ambit-ctl",
        ],
    ),
    ("L5 test world", &["ambit-tests"]),
    ("L5 bench", &["ambit-bench"]),
];

/// Crates that must stay pure: no runtime, no clock, no randomness, no environment.
const PURE: &[&str] = &["ambit-proto", "ambit-wire", "ambit-model", "ambit-dns"];
/// What would make a pure crate impure.
const IMPURE_DEPENDENCIES: &[&str] = &[
    "tokio", "rand", "fastrand", "time", "socket2", "nix", "libc", "tracing",
];

/// A file longer than this is no longer one idea that one reading holds; tests may be longer, as tables are.
const LONGEST_FILE: usize = 600;
/// Tests are tables of cases, read one case at a time.
const LONGEST_TEST_FILE: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace root")
        .to_path_buf()
}

/// Normal (not dev, not build) dependencies of every workspace crate, by name.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo metadata runs");
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let mut graph = BTreeMap::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = package["name"].as_str().expect("a name").to_owned();
        let normal = package["dependencies"]
            .as_array()
            .expect("dependencies")
            .iter();
        let normal = normal.filter(|dependency| dependency["kind"].is_null());
        graph.insert(
            name,
            normal
                .map(|d| d["name"].as_str().expect("a name").to_owned())
                .collect(),
        );
    }
    graph
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|(_, crates)| crates.contains(&name))
}

#[test]
fn every_crate_depends_only_on_lower_layers() {
    let mut wrong = Vec::new();
    for (name, dependencies) in dependencies() {
        let Some(own) = layer(&name) else {
            wrong.push(format!(
                "{name} stands in no layer: add it to the table and to ARCHITECTURE.md"
            ));
            continue;
        };
        for dependency in dependencies.iter().filter(|d| d.starts_with("ambit-")) {
            if layer(dependency).is_none_or(|other| other >= own) {
                wrong.push(format!("{name} must not depend on {dependency}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "arrows that point up or sideways:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn pure_crates_stay_pure() {
    let graph = dependencies();
    let mut wrong = Vec::new();
    for name in PURE {
        for dependency in &graph[*name] {
            if IMPURE_DEPENDENCIES.contains(&dependency.as_str()) {
                wrong.push(format!("{name} must not depend on {dependency}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn sources() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "*.rs"])
        .current_dir(root())
        .output()
        .expect("git ls-files runs");
    let text = String::from_utf8(output.stdout).expect("paths are UTF-8");
    text.split('\0')
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .collect()
}

#[test]
fn no_file_grows_past_one_reading() {
    let mut wrong = Vec::new();
    for path in sources() {
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else {
            continue;
        };
        let shown = path.to_string_lossy();
        let is_test =
            shown.ends_with("tests.rs") || shown.contains("tests/") || shown.contains("/layout/");
        let limit = if is_test {
            LONGEST_TEST_FILE
        } else {
            LONGEST_FILE
        };
        let lines = text.lines().count();
        if lines > limit {
            wrong.push(format!("{shown}: {lines} lines, at most {limit}"));
        }
        if shown.ends_with("/mod.rs") {
            wrong.push(format!("{shown}: modules are foo.rs beside foo/"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_stands_in_one_crate() {
    let mut wrong = Vec::new();
    for path in sources() {
        let shown = path.to_string_lossy().into_owned();
        if shown.starts_with("crates/net/")
            || shown.starts_with("tests/layout/")
            || shown.starts_with("fuzz/")
        {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if line.contains("unsafe {")
                || line.contains("unsafe fn")
                || line.contains("unsafe impl")
            {
                wrong.push(format!("{shown}:{}", number + 1));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "unsafe outside crates/net:\n{}",
        wrong.join("\n")
    );
}
