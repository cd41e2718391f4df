//! A YAML document as a tree in which every value knows its line.
//!
//! Types are read from the tree's JSON form, so a scalar has the type YAML gives it (a number is not
//! silently taken for a string, as in Kubernetes), and a complaint about a field finds its line here.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// Deepest nesting accepted; Kubernetes kinds stay below 20, and recursion below is bounded by it.
const MAX_DEPTH: usize = 64;

/// One value and the line where it starts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Located {
    /// Line inside the document text, from 1.
    pub(crate) line: usize,
    pub(crate) tree: Tree,
}

/// A YAML value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tree {
    Scalar(Value),
    Sequence(Vec<Located>),
    Mapping(Vec<(String, Located)>),
}

/// Why a text is not a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    /// Line inside the document text, from 1; 0 when unknown.
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl Located {
    /// Reads one YAML document. `None` when it holds nothing but comments.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, Malformed> {
        match serde_saphyr::from_str::<Option<Spanned<Tree>>>(text) {
            Ok(None) => Ok(None),
            Ok(Some(root)) => {
                let root = Self::from(root);
                if root.depth() > MAX_DEPTH {
                    return Err(Malformed {
                        line: root.line,
                        message: format!("nested more than {MAX_DEPTH} levels deep"),
                    });
                }
                Ok(Some(root))
            }
            Err(error) => Err(Malformed {
                line: error
                    .location()
                    .map_or(0, |at| usize::try_from(at.line()).unwrap_or(0)),
                message: first_line(&error.without_snippet().to_string()),
            }),
        }
    }

    /// The value of `key` when this is a mapping that has it.
    pub(crate) fn child(&self, key: &str) -> Option<&Self> {
        match &self.tree {
            Tree::Mapping(entries) => entries
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value),
            Tree::Scalar(_) | Tree::Sequence(_) => None,
        }
    }

    /// The text of `key` when it is a string.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match &self.child(key)?.tree {
            Tree::Scalar(Value::String(text)) => Some(text),
            Tree::Scalar(_) | Tree::Sequence(_) | Tree::Mapping(_) => None,
        }
    }

    /// The line of the deepest part of `path` that exists.
    pub(crate) fn line_of(&self, path: &[Step]) -> usize {
        let mut here = self;
        for step in path {
            let next = match (step, &here.tree) {
                (Step::Key(key), Tree::Mapping(_)) => here.child(key),
                (Step::Index(index), Tree::Sequence(items)) => items.get(*index),
                _ => None,
            };
            match next {
                Some(next) => here = next,
                None => break,
            }
        }
        here.line
    }

    /// The same value without lines.
    pub(crate) fn to_json(&self) -> Value {
        match &self.tree {
            Tree::Scalar(value) => value.clone(),
            Tree::Sequence(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Tree::Mapping(entries) => Value::Object(
                entries
                    .iter()
                    .map(|(key, value)| (key.clone(), value.to_json()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }

    fn depth(&self) -> usize {
        match &self.tree {
            Tree::Scalar(_) => 1,
            Tree::Sequence(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            Tree::Mapping(entries) => {
                1 + entries
                    .iter()
                    .map(|(_, value)| value.depth())
                    .max()
                    .unwrap_or(0)
            }
        }
    }
}

impl From<Spanned<Tree>> for Located {
    fn from(spanned: Spanned<Tree>) -> Self {
        Self {
            line: usize::try_from(spanned.referenced.line()).unwrap_or(0),
            tree: spanned.value,
        }
    }
}

/// One step of a path into a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

/// A path as people write it: `spec.rules[0].from`.
pub(crate) fn display_path(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(key);
            }
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Bool(value)))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Number(value.into())))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Number(value.into())))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Tree, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("not a finite number"))?;
        Ok(Tree::Scalar(Value::Number(number)))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::String(value.to_owned())))
    }

    fn visit_unit<E: Error>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }

    fn visit_none<E: Error>(self) -> Result<Tree, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Deserialize::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element::<Spanned<Tree>>()? {
            items.push(Located::from(item));
        }
        Ok(Tree::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = access.next_entry::<String, Spanned<Tree>>()? {
            entries.push((key, Located::from(value)));
        }
        Ok(Tree::Mapping(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::{Located, Step, display_path};
    use serde_json::json;

    #[test]
    fn keeps_yaml_types_and_lines() {
        let text = "a: 1\nb:\n  - x: \"1\"\n    y: true\n  - ~\nc: 1.5\nd: hello\n";
        let root = Located::parse(text).unwrap().unwrap();
        assert_eq!(
            root.to_json(),
            json!({"a": 1, "b": [{"x": "1", "y": true}, null], "c": 1.5, "d": "hello"})
        );
        let path = [Step::Key("b".into()), Step::Index(0), Step::Key("y".into())];
        assert_eq!(root.line_of(&path), 4);
        assert_eq!(display_path(&path), "b[0].y");
        let beyond = [
            Step::Key("b".into()),
            Step::Index(0),
            Step::Key("missing".into()),
        ];
        assert_eq!(root.line_of(&beyond), 3);
    }

    #[test]
    fn an_empty_document_is_nothing() {
        assert_eq!(Located::parse("# only a comment\n").unwrap(), None);
        assert_eq!(Located::parse("").unwrap(), None);
    }

    #[test]
    fn names_the_line_of_a_syntax_error() {
        let error = Located::parse("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(error.line >= 2, "{error:?}");
        let error = Located::parse("a: 1\na: 2\n").unwrap_err();
        assert_eq!(error.line, 2, "{error:?}");
    }

    #[test]
    fn refuses_a_document_nested_too_deep() {
        let text = format!("{}{}", "[".repeat(100), "]".repeat(100));
        assert!(Located::parse(&text).is_err());
    }
}
