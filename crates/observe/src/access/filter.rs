//! Which connections are recorded: an expression over the fields of a record.
//!
//! ```text
//! expression = and  { "||" and }
//! and        = term { "&&" term }
//! term       = "!" term | "(" expression ")" | test
//! test       = field ("==" | "!=" | "<" | "<=" | ">" | ">=") value
//!            | field ("startsWith" | "endsWith" | "contains") text
//! value      = text | number | time
//! text       = '"' characters, with \" and \\ '"'
//! number     = digits
//! time       = digits ("ms" | "s" | "m" | "h")
//! ```
//!
//! `direction == "inbound" && (error != "" || duration >= 500ms) && !(src.namespace startsWith "kube-")`
//!
//! Fields have the names that they have in the log. `bytes_sent` and `bytes_recv` are compared with numbers, `duration` with times,
//! all others with texts, and only for equality and the three words. A field that a record does not have is the empty text.
//!
//! # Guarantees
//! Parsing never panics and takes time in proportion to the text, which is bounded, as are nesting and the number of tests. A field,
//! operator or value that does not belong together is refused with the place where it stands; nothing is refused later.

use std::fmt;

use thiserror::Error;

use super::{Record, Shown};

/// Longest expression, in bytes: some thirty tests with long names, and still readable.
const LONGEST: usize = 2048;

/// Most tests in one expression: each costs some ten nanoseconds for each connection.
const MOST_TESTS: usize = 64;

/// Deepest nesting of parentheses and negations, so that parsing needs little stack.
const DEEPEST: usize = 16;

/// What is wrong with an expression, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("at character {at}: {problem}")]
pub struct FilterError {
    /// Where, in characters counted from 1.
    pub at: usize,
    /// What.
    pub problem: String,
}

/// An expression, parsed.
#[derive(Clone)]
pub struct Filter {
    text: String,
    root: Node,
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Filter").field(&self.text).finish()
    }
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Filter {}

/// As it was written.
impl serde::Serialize for Filter {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.text)
    }
}

#[derive(Debug, Clone)]
enum Node {
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
    Text(TextField, TextTest, String),
    Number(NumberField, Order, u128),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TextField {
    SourceAddress,
    SourceWorkload,
    SourceNamespace,
    SourceIdentity,
    SourceCluster,
    Address,
    HboneAddress,
    Service,
    Workload,
    Namespace,
    Identity,
    Cluster,
    Direction,
    Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NumberField {
    Sent,
    Received,
    /// In nanoseconds.
    Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Text(TextField),
    Number(NumberField),
}

/// Every field, by the name that it has in the log.
const FIELDS: [(&str, Field); 17] = [
    ("src.addr", Field::Text(TextField::SourceAddress)),
    ("src.workload", Field::Text(TextField::SourceWorkload)),
    ("src.namespace", Field::Text(TextField::SourceNamespace)),
    ("src.identity", Field::Text(TextField::SourceIdentity)),
    ("src.cluster", Field::Text(TextField::SourceCluster)),
    ("dst.addr", Field::Text(TextField::Address)),
    ("dst.hbone_addr", Field::Text(TextField::HboneAddress)),
    ("dst.service", Field::Text(TextField::Service)),
    ("dst.workload", Field::Text(TextField::Workload)),
    ("dst.namespace", Field::Text(TextField::Namespace)),
    ("dst.identity", Field::Text(TextField::Identity)),
    ("dst.cluster", Field::Text(TextField::Cluster)),
    ("direction", Field::Text(TextField::Direction)),
    ("bytes_sent", Field::Number(NumberField::Sent)),
    ("bytes_recv", Field::Number(NumberField::Received)),
    ("duration", Field::Number(NumberField::Duration)),
    ("error", Field::Text(TextField::Error)),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TextTest {
    Equal,
    Unequal,
    StartsWith,
    EndsWith,
    Contains,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Equal,
    Unequal,
    Less,
    AtMost,
    More,
    AtLeast,
}

/// Units of times, in nanoseconds, the longer name before its first letter.
const UNITS: [(&str, u128); 4] = [
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl Filter {
    /// Parses an expression.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        if text.len() > LONGEST {
            let problem = format!("longer than {LONGEST} bytes");
            return Err(FilterError {
                at: LONGEST,
                problem,
            });
        }
        let mut parser = Parser {
            text,
            at: 0,
            tests: 0,
        };
        let root = parser.any(0)?;
        parser.blank();
        if parser.at < text.len() {
            return parser.wrong("expected `&&`, `||` or the end");
        }
        Ok(Self {
            text: text.to_owned(),
            root,
        })
    }

    /// Whether `record` is to be written. Allocates only for identities, addresses and errors that the expression asks about.
    #[must_use]
    pub fn admits(&self, record: &Record<'_>) -> bool {
        holds(&self.root, record)
    }
}

fn holds(node: &Node, record: &Record<'_>) -> bool {
    match node {
        Node::All(nodes) => nodes.iter().all(|node| holds(node, record)),
        Node::Any(nodes) => nodes.iter().any(|node| holds(node, record)),
        Node::Not(node) => !holds(node, record),
        Node::Number(field, order, wanted) => {
            let found = match field {
                NumberField::Sent => record.bytes_sent.into(),
                NumberField::Received => record.bytes_received.into(),
                NumberField::Duration => record.duration.as_nanos(),
            };
            match order {
                Order::Equal => found == *wanted,
                Order::Unequal => found != *wanted,
                Order::Less => found < *wanted,
                Order::AtMost => found <= *wanted,
                Order::More => found > *wanted,
                Order::AtLeast => found >= *wanted,
            }
        }
        Node::Text(field, test, wanted) => with_text(*field, record, |found| match test {
            TextTest::Equal => found == wanted,
            TextTest::Unequal => found != wanted,
            TextTest::StartsWith => found.starts_with(wanted.as_str()),
            TextTest::EndsWith => found.ends_with(wanted.as_str()),
            TextTest::Contains => found.contains(wanted.as_str()),
        }),
    }
}

fn with_text(field: TextField, record: &Record<'_>, test: impl FnOnce(&str) -> bool) -> bool {
    let shown = |value: Option<&dyn Shown>| value.map(ToString::to_string).unwrap_or_default();
    let address = |value: Option<std::net::SocketAddr>| {
        value.map(|address| address.to_string()).unwrap_or_default()
    };
    match field {
        TextField::SourceAddress => test(&address(record.source_address)),
        TextField::SourceWorkload => test(record.source.workload),
        TextField::SourceNamespace => test(record.source.namespace),
        TextField::SourceIdentity => test(&shown(record.source.identity)),
        TextField::SourceCluster => test(record.source.cluster),
        TextField::Address => test(&address(record.destination_address)),
        TextField::HboneAddress => test(&shown(record.hbone_address)),
        TextField::Service => test(record.service),
        TextField::Workload => test(record.destination.workload),
        TextField::Namespace => test(record.destination.namespace),
        TextField::Identity => test(&shown(record.destination.identity)),
        TextField::Cluster => test(record.destination.cluster),
        TextField::Direction => test(record.direction.as_str()),
        TextField::Error => test(&shown(record.error)),
    }
}

struct Parser<'a> {
    text: &'a str,
    /// Bytes read; always between two characters.
    at: usize,
    tests: usize,
}

impl Parser<'_> {
    fn any(&mut self, depth: usize) -> Result<Node, FilterError> {
        let mut nodes = vec![self.all(depth)?];
        while self.take("||") {
            nodes.push(self.all(depth)?);
        }
        Ok(single(nodes, Node::Any))
    }

    fn all(&mut self, depth: usize) -> Result<Node, FilterError> {
        let mut nodes = vec![self.term(depth)?];
        while self.take("&&") {
            nodes.push(self.term(depth)?);
        }
        Ok(single(nodes, Node::All))
    }

    fn term(&mut self, depth: usize) -> Result<Node, FilterError> {
        if depth > DEEPEST {
            return self.wrong(format!("nested more than {DEEPEST} deep"));
        }
        if self.take("!") {
            return Ok(Node::Not(Box::new(self.term(depth + 1)?)));
        }
        if self.take("(") {
            let inner = self.any(depth + 1)?;
            if !self.take(")") {
                return self.wrong("expected `&&`, `||` or `)`");
            }
            return Ok(inner);
        }
        self.test()
    }

    fn test(&mut self) -> Result<Node, FilterError> {
        if self.tests >= MOST_TESTS {
            return self.wrong(format!("more than {MOST_TESTS} tests"));
        }
        self.tests += 1;
        match self.field()? {
            Field::Text(field) => {
                let test = self.text_test()?;
                Ok(Node::Text(field, test, self.quoted()?))
            }
            Field::Number(field) => {
                let order = self.order()?;
                let value = match field {
                    NumberField::Duration => self.time()?,
                    NumberField::Sent | NumberField::Received => self.number()?,
                };
                Ok(Node::Number(field, order, value))
            }
        }
    }

    fn field(&mut self) -> Result<Field, FilterError> {
        self.blank();
        let length = self
            .rest()
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '_'))
            .unwrap_or(self.rest().len());
        let name = self.rest().get(..length).unwrap_or_default();
        let known = FIELDS.iter().find(|(known, _)| *known == name);
        match known {
            Some((_, field)) => {
                self.at += length;
                Ok(*field)
            }
            None => {
                let names: Vec<&str> = FIELDS.iter().map(|(name, _)| *name).collect();
                self.wrong(format!(
                    "expected a field, one of {}; found `{name}`",
                    names.join(", ")
                ))
            }
        }
    }

    fn text_test(&mut self) -> Result<TextTest, FilterError> {
        for (word, test) in [
            ("==", TextTest::Equal),
            ("!=", TextTest::Unequal),
            ("startsWith", TextTest::StartsWith),
            ("endsWith", TextTest::EndsWith),
            ("contains", TextTest::Contains),
        ] {
            if self.take(word) {
                return Ok(test);
            }
        }
        self.wrong("expected `==`, `!=`, `startsWith`, `endsWith` or `contains` after a text field")
    }

    fn order(&mut self) -> Result<Order, FilterError> {
        // The longer before what they begin with.
        for (word, order) in [
            ("==", Order::Equal),
            ("!=", Order::Unequal),
            ("<=", Order::AtMost),
            (">=", Order::AtLeast),
            ("<", Order::Less),
            (">", Order::More),
        ] {
            if self.take(word) {
                return Ok(order);
            }
        }
        self.wrong("expected `==`, `!=`, `<`, `<=`, `>` or `>=` after a field of numbers")
    }

    fn quoted(&mut self) -> Result<String, FilterError> {
        if !self.take("\"") {
            return self.wrong("expected a text in double quotes");
        }
        let mut value = String::new();
        let mut characters = self.rest().char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.at += at + 1;
                    return Ok(value);
                }
                '\\' => match characters.next() {
                    Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                    _ => {
                        self.at += at;
                        return self.wrong("`\\` stands before `\"` or `\\` only");
                    }
                },
                other => value.push(other),
            }
        }
        self.wrong("the text has no closing quote")
    }

    fn number(&mut self) -> Result<u128, FilterError> {
        self.blank();
        let rest = self.rest();
        let length = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        let digits = rest.get(..length).unwrap_or_default();
        match digits.parse::<u64>() {
            Ok(number) => {
                self.at += length;
                Ok(number.into())
            }
            Err(_) => self.wrong("expected a number below 2^64"),
        }
    }

    fn time(&mut self) -> Result<u128, FilterError> {
        let number = self.number()?;
        for (unit, nanoseconds) in UNITS {
            // Directly behind the number, and followed by no other letter.
            let Some(after) = self.rest().strip_prefix(unit) else {
                continue;
            };
            if !after.starts_with(|c: char| c.is_ascii_alphanumeric()) {
                self.at += unit.len();
                return Ok(number.saturating_mul(nanoseconds));
            }
        }
        self.wrong("expected a unit of time right behind the number: ms, s, m or h")
    }

    /// Takes `word` if it comes next.
    fn take(&mut self, word: &str) -> bool {
        self.blank();
        let found = self.rest().starts_with(word);
        if found {
            self.at += word.len();
        }
        found
    }

    fn blank(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn wrong<T>(&self, problem: impl Into<String>) -> Result<T, FilterError> {
        let read = self.text.get(..self.at).unwrap_or_default();
        Err(FilterError {
            at: read.chars().count() + 1,
            problem: problem.into(),
        })
    }
}

fn single(mut nodes: Vec<Node>, several: impl FnOnce(Vec<Node>) -> Node) -> Node {
    match (nodes.pop(), nodes.is_empty()) {
        (Some(only), true) => only,
        (last, _) => {
            nodes.extend(last);
            several(nodes)
        }
    }
}

#[cfg(test)]
mod tests;
