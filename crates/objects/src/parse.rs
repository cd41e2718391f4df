//! Text of one file -> objects and problems. Pure.
//!
//! Documents are cut apart before they are parsed, so a broken one costs its neighbours nothing.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::kinds::{Key, Kind, Name, Object};
use crate::problem::{Problem, Severity};
use crate::tree::{Located, Malformed, Step, Tree, display_path};

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// Good objects, in the order of the file.
    pub objects: Vec<Found>,
    /// What is wrong, in the order of the file.
    pub problems: Vec<Problem>,
    /// Objects whose document was refused but whose kind and name could be read.
    pub broken: Vec<Key>,
    /// Whether some document was refused of which not even that could be read.
    pub unidentified: bool,
}

/// An object and the line where it starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The object.
    pub object: Object,
    /// Line in the file, from 1.
    pub line: usize,
}

/// Reads every document of `text`. `file` is only for the problems.
pub fn parse(file: &Path, text: &str) -> Parsed {
    let mut reading = Reading {
        file,
        parsed: Parsed::default(),
    };
    for document in documents(text) {
        match Located::parse(document.text) {
            Ok(None) => {}
            Ok(Some(root)) => reading.document(document.first_line, &root),
            Err(malformed) => reading.malformed(&document, malformed),
        }
    }
    reading.parsed
}

/// A piece of a file between `---` lines.
struct Document<'a> {
    /// Line of the file where the text starts, from 1.
    first_line: usize,
    text: &'a str,
}

fn documents(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Vec::new();
    let (mut start, mut first_line) = (0, 1);
    let mut offset = 0;
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let next = offset + line.len();
        let trimmed = line.trim_end();
        if trimmed == "---" || trimmed == "..." || trimmed.starts_with("--- ") {
            found.push(Document {
                first_line,
                text: text.get(start..offset).unwrap_or_default(),
            });
            // What follows the marker on its own line belongs to the next document.
            let rest = trimmed.get(4..).unwrap_or_default().trim_start();
            (start, first_line) = if rest.is_empty() || rest.starts_with('#') {
                (next, index + 2)
            } else {
                (offset + 4, index + 1)
            };
        }
        offset = next;
    }
    found.push(Document {
        first_line,
        text: text.get(start..).unwrap_or_default(),
    });
    found
}

struct Reading<'a> {
    file: &'a Path,
    parsed: Parsed,
}

impl Reading<'_> {
    fn problem(&mut self, severity: Severity, line: usize, field: String, message: String) {
        self.parsed.problems.push(Problem {
            file: self.file.to_owned(),
            line,
            field,
            message,
            severity,
        });
    }

    fn malformed(&mut self, document: &Document<'_>, malformed: Malformed) {
        let line = malformed.line.max(1) + document.first_line - 1;
        self.problem(Severity::Error, line, String::new(), malformed.message);
        match scan_key(document.text) {
            Some(key) => self.parsed.broken.push(key),
            None => self.parsed.unidentified = true,
        }
    }

    fn document(&mut self, first_line: usize, root: &Located) {
        let is_list = root.text("kind").is_some_and(|kind| kind == "List");
        match root.child("items").map(|items| &items.tree) {
            Some(Tree::Sequence(items)) if is_list => {
                for item in items {
                    self.object(first_line, item);
                }
            }
            _ => self.object(first_line, root),
        }
    }

    fn object(&mut self, first_line: usize, root: &Located) {
        let at = |line: usize| line + first_line - 1;
        let Some(kind) = self.kind(first_line, root) else {
            return;
        };
        let name = name_of(kind, root);
        let missing = match &name {
            Some(name) if kind.namespaced() && name.namespace.is_empty() => Some("namespace"),
            Some(_) => None,
            None => Some("name"),
        };
        if let Some(missing) = missing {
            let path = [Step::Key("metadata".to_owned())];
            self.problem(
                Severity::Error,
                at(root.line_of(&path)),
                format!("metadata.{missing}"),
                format!("this {kind} has no {missing}"),
            );
            self.parsed.unidentified = true;
            return;
        }
        let key = name.map(|name| Key { kind, name });
        if let Some((part, text)) = key.as_ref().and_then(|key| invalid_part(&key.name)) {
            let path = ["metadata", part].map(|key| Step::Key(key.to_owned()));
            let message = format!("{text:?} is not a Kubernetes name");
            let line = at(root.line_of(&path));
            self.problem(Severity::Error, line, display_path(&path), message);
            // It may be one of the file's objects, misspelt.
            self.parsed.unidentified = true;
            return;
        }
        match kind.read(root.to_json()) {
            Ok(mut object) => {
                let unknown = self.unknown_fields(first_line, root, &object);
                if let Object::AuthorizationPolicy(policy) = &mut object {
                    let of_spec = unknown.into_iter().filter(|path| path.starts_with("spec."));
                    Arc::make_mut(policy).unknown = of_spec.collect();
                }
                self.parsed.objects.push(Found {
                    object,
                    line: at(root.line),
                });
            }
            Err(error) => {
                let path: Vec<Step> = error.path().iter().filter_map(step).collect();
                let message = error.inner().to_string();
                self.problem(
                    Severity::Error,
                    at(root.line_of(&path)),
                    display_path(&path),
                    message,
                );
                self.parsed.broken.extend(key);
            }
        }
    }

    /// The object's kind; `None`, with a problem, when we do not read it.
    fn kind(&mut self, first_line: usize, root: &Located) -> Option<Kind> {
        let (Some(api_version), Some(kind)) = (root.text("apiVersion"), root.text("kind")) else {
            let missing = if root.text("kind").is_none() {
                "kind"
            } else {
                "apiVersion"
            };
            let message = format!("not a Kubernetes object: {missing} is missing or no string");
            let line = root.line + first_line - 1;
            self.problem(Severity::Error, line, missing.to_owned(), message);
            self.parsed.unidentified = true;
            return None;
        };
        let found = Kind::find(api_version, kind);
        if found.is_none() {
            let line = root.line_of(&[Step::Key("kind".to_owned())]) + first_line - 1;
            let message = format!("kind {kind} of {api_version} is not read here; it is skipped");
            self.problem(Severity::Error, line, "kind".to_owned(), message);
        }
        found
    }

    /// Warns of every field of the document that its type does not have, and returns their paths.
    fn unknown_fields(
        &mut self,
        first_line: usize,
        root: &Located,
        object: &Object,
    ) -> Vec<String> {
        let mut unknown = Vec::new();
        let known = object.to_json();
        collect_unknown(root, &known, &mut Vec::new(), &mut unknown);
        let effect = match object {
            Object::AuthorizationPolicy(_) => "the policy is read in its strictest sense",
            _ => "it has no effect",
        };
        for (path, line) in &unknown {
            self.problem(
                Severity::Warning,
                line + first_line - 1,
                path.clone(),
                format!("unknown field of {}; {effect}", object.kind()),
            );
        }
        unknown.into_iter().map(|(path, _)| path).collect()
    }
}

/// What reading kept is what is known: a field that is in the text and not in the object was dropped.
fn collect_unknown(
    here: &Located,
    known: &Value,
    path: &mut Vec<Step>,
    unknown: &mut Vec<(String, usize)>,
) {
    match (&here.tree, known) {
        (Tree::Mapping(entries), Value::Object(fields)) => {
            for (key, value) in entries {
                if path.is_empty() && (key == "apiVersion" || key == "kind") {
                    continue;
                }
                path.push(Step::Key(key.clone()));
                match fields.get(key) {
                    Some(known) => collect_unknown(value, known, path, unknown),
                    None if is_null_or_empty(&value.tree) => {}
                    None => unknown.push((display_path(path), value.line)),
                }
                path.pop();
            }
        }
        (Tree::Sequence(items), Value::Array(known)) => {
            for (index, (item, known)) in items.iter().zip(known).enumerate() {
                path.push(Step::Index(index));
                collect_unknown(item, known, path, unknown);
                path.pop();
            }
        }
        _ => {}
    }
}

/// Kubernetes types leave out what is null or empty when they are written, so its absence says nothing.
fn is_null_or_empty(tree: &Tree) -> bool {
    match tree {
        Tree::Scalar(value) => value.is_null(),
        Tree::Sequence(items) => items.is_empty(),
        Tree::Mapping(entries) => entries.is_empty(),
    }
}

fn step(segment: &serde_path_to_error::Segment) -> Option<Step> {
    match segment {
        serde_path_to_error::Segment::Seq { index } => Some(Step::Index(*index)),
        serde_path_to_error::Segment::Map { key } => Some(Step::Key(key.clone())),
        serde_path_to_error::Segment::Enum { variant } => Some(Step::Key(variant.clone())),
        serde_path_to_error::Segment::Unknown => None,
    }
}

/// Name and namespace; the namespace of a cluster-scoped kind is empty whatever is written.
fn name_of(kind: Kind, root: &Located) -> Option<Name> {
    let metadata = root.child("metadata")?;
    let name = metadata.text("name").filter(|name| !name.is_empty())?;
    let namespace = if kind.namespaced() {
        metadata.text("namespace")
    } else {
        None
    };
    Some(Name::new(namespace.unwrap_or_default(), name))
}

/// The part of a name that Kubernetes would not take (RFC 1123 labels, dots between them). Names are
/// put together with slashes further on, so one that holds a slash could pass for another.
fn invalid_part(name: &Name) -> Option<(&'static str, &str)> {
    /// Longest name of an object in Kubernetes.
    const MAX_NAME: usize = 253;
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let dash_at_end = label.starts_with('-') || label.ends_with('-');
        !label.is_empty() && !dash_at_end && label.bytes().all(inner)
    };
    let valid = |text: &str| text.len() <= MAX_NAME && text.split('.').all(label);
    if !valid(&name.name) {
        return Some(("name", &name.name));
    }
    let namespace = name.namespace.as_str();
    (!namespace.is_empty() && !label(namespace)).then_some(("namespace", namespace))
}

/// Kind and name of a document that is not YAML, read line by line.
fn scan_key(text: &str) -> Option<Key> {
    let top = |key: &str| text.lines().find_map(|line| field(line, key));
    let mut inside = text
        .lines()
        .skip_while(|line| line.trim_end() != "metadata:")
        .skip(1);
    let block: Vec<&str> = inside
        .by_ref()
        .take_while(|line| line.starts_with(' ') || line.is_empty())
        .collect();
    let indent = block
        .first()
        .map(|line| line.len() - line.trim_start().len())?;
    let member = |key: &str| {
        block
            .iter()
            .find_map(|line| line.get(indent..).and_then(|line| field(line, key)))
    };
    let kind = Kind::find(&top("apiVersion")?, &top("kind")?)?;
    let namespace = if kind.namespaced() {
        member("namespace")?
    } else {
        String::new()
    };
    Some(Key {
        kind,
        name: Name::new(namespace, member("name")?),
    })
}

fn field(line: &str, key: &str) -> Option<String> {
    let value = line.strip_prefix(key)?.strip_prefix(':')?;
    let value = value.split(" #").next().unwrap_or_default().trim();
    let value = value.trim_matches(|c| c == '"' || c == '\'');
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests;
