//! The last accepted version of every object. Pure: texts in, a snapshot out.
//!
//! A refused document leaves in force what was accepted before: the object of the same kind and
//! name when those can still be read, else every object of that file. So a typing error never
//! removes a policy. An object goes when its document is gone from a file that can be read whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::kinds::{Key, Object};
use crate::parse::{Parsed, parse};
use crate::problem::{Problem, Severity};
use crate::snapshot::Objects;

/// Accepted objects between two readings of the folder.
#[derive(Debug, Default)]
pub struct Store {
    files: BTreeMap<PathBuf, Read>,
    accepted: BTreeMap<Key, Accepted>,
}

/// What came of one file the last time.
#[derive(Debug)]
struct Read {
    content: Content,
    parsed: Parsed,
}

/// What a file holds: text, or the reason why it cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Its text.
    Text(String),
    /// Why there is none.
    Unreadable(String),
}

#[derive(Debug)]
struct Accepted {
    file: PathBuf,
    object: Object,
}

impl Store {
    /// Takes the whole folder as it is now and returns what is in force after it.
    pub fn load(&mut self, contents: BTreeMap<PathBuf, Content>) -> Objects {
        let mut before = std::mem::take(&mut self.files);
        for (file, content) in contents {
            let read = match before.remove(&file) {
                Some(read) if read.content == content => read,
                _ => read(&file, content),
            };
            self.files.insert(file, read);
        }
        let problems = self.accept();
        self.snapshot(problems)
    }

    /// Rebuilds `accepted` from the files and what was accepted before.
    fn accept(&mut self) -> Vec<Problem> {
        let mut previous = std::mem::take(&mut self.accepted);
        let mut problems = Vec::new();
        for (file, read) in &self.files {
            problems.extend(read.parsed.problems.iter().cloned());
            for found in &read.parsed.objects {
                let key = found.object.key();
                if let Some(first) = self.accepted.get(&key) {
                    problems.push(duplicate(file, found.line, &key, &first.file));
                    continue;
                }
                let object = found.object.clone();
                self.accepted.insert(
                    key,
                    Accepted {
                        file: file.clone(),
                        object,
                    },
                );
            }
        }
        let broken: BTreeSet<&Key> = self
            .files
            .values()
            .flat_map(|read| &read.parsed.broken)
            .collect();
        previous.retain(|key, accepted| {
            let unidentified = self
                .files
                .get(&accepted.file)
                .is_some_and(|read| read.parsed.unidentified);
            !self.accepted.contains_key(key) && (unidentified || broken.contains(key))
        });
        self.accepted.extend(previous);
        problems
    }

    fn snapshot(&self, mut problems: Vec<Problem>) -> Objects {
        problems.sort();
        problems.dedup();
        let mut objects = Objects {
            problems,
            ..Objects::default()
        };
        for accepted in self.accepted.values() {
            objects.insert(accepted.object.clone());
        }
        objects
    }
}

fn read(file: &Path, content: Content) -> Read {
    let parsed = match &content {
        Content::Text(text) => parse(file, text),
        Content::Unreadable(reason) => Parsed {
            problems: vec![Problem {
                file: file.to_owned(),
                line: 0,
                field: String::new(),
                message: format!("cannot be read: {reason}"),
                severity: Severity::Error,
            }],
            unidentified: true,
            ..Parsed::default()
        },
    };
    Read { content, parsed }
}

fn duplicate(file: &Path, line: usize, key: &Key, first: &Path) -> Problem {
    Problem {
        file: file.to_owned(),
        line,
        field: "metadata.name".to_owned(),
        message: format!(
            "{key} is already defined in {}; this one is ignored",
            first.display()
        ),
        severity: Severity::Error,
    }
}

#[cfg(test)]
mod tests;
