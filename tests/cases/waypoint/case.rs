//! One scenario, and everything that can be seen of it: the same for our waypoint and for Envoy.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ambit_tests::apps::heard::Heard;
use ambit_tests::expect::pause;
use ambit_tests::http::{Answer, Called, call};
use ambit_tests::raw::{exchange, frames};
use ambit_tests::records::Record;
use ambit_tests::world::World;
use bytes::Bytes;
use http::{HeaderMap, Method, Version};
use serde_json::Value;

use super::WAYPOINT;

/// What was seen, by name. A fact that is not there counts as empty.
///
/// `status`, `body`, `answer: FIELD`; of the request that reached the application, `upstream: FIELD`
/// and `upstream's name`, `method`, `path`…; of the log, `log: response_code`, `log: response_flags`
/// and `log: records`; `error` if there was no answer.
pub type Facts = BTreeMap<String, String>;

/// Pairs of names and values.
pub type Pairs = Vec<(String, String)>;

/// One scenario.
#[derive(Debug, Clone)]
pub struct Case {
    /// What it shows.
    pub what: String,
    /// The pod that asks.
    pub from: &'static str,
    /// What it asks.
    pub ask: Ask,
    /// Facts that our answer has; Envoy's too, where no difference is written down. A value that
    /// begins with `*` is found anywhere.
    pub holds: Pairs,
}

/// How a request is made.
#[derive(Debug, Clone)]
pub enum Ask {
    /// By an HTTP client.
    Http {
        version: Version,
        method: Method,
        to: String,
        path: String,
        headers: Pairs,
        body: String,
    },
    /// By a gRPC client: messages are sent when the one before has come back.
    Grpc {
        to: &'static str,
        path: &'static str,
        messages: usize,
    },
    /// Bytes, in which `{n}` is replaced by what makes them this case's. A sound request follows
    /// them, which asks for the connection's end.
    Bytes { to: &'static str, text: String },
    /// Fields of one HTTP/2 request, as they are; `{n}` is replaced.
    Frames {
        to: &'static str,
        fields: Pairs,
        body: Option<String>,
    },
    /// An upgrade to this protocol, and some frames.
    Upgrade {
        to: &'static str,
        protocol: &'static str,
    },
    /// Many requests on one connection.
    Many {
        to: &'static str,
        path: &'static str,
        requests: u32,
    },
}

/// Silence after which a sound answer is not coming any more.
const PATIENCE: Duration = Duration::from_secs(2);
/// Every log is written out in a fraction of this.
const LOGGED_WITHIN: Duration = Duration::from_secs(5);
/// Cases asked at the same time: some of them wait.
const AT_ONCE: usize = 6;

impl Case {
    /// Asks, and tells what was seen; `number` is the case's.
    fn ask(&self, world: &World, number: usize) -> Facts {
        let client = world.pod(self.from);
        let marker = format!("case-{number}");
        match &self.ask {
            Ask::Http {
                version,
                method,
                to,
                path,
                headers,
                body,
            } => {
                let pairs = headers.iter().map(|(name, value)| (&name[..], &value[..]));
                let headers: Vec<_> = pairs.chain([("user-agent", &marker[..])]).collect();
                let answer = client.http(to, *version).and_then(|mut connection| {
                    connection.send(method.clone(), path, &headers, body.clone())
                });
                match answer {
                    Ok(answer) => of_answer(&answer),
                    Err(error) => failed(&format!("{error:#}")),
                }
            }
            Ask::Grpc { to, path, messages } => {
                let texts: Vec<String> = (0..*messages).map(|n| format!("message {n}")).collect();
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                match call(client, to, path, &[("user-agent", &marker[..])], &texts) {
                    Ok(called) => of_call(&called),
                    Err(error) => failed(&format!("{error:#}")),
                }
            }
            Ask::Bytes { to, text } => {
                let host = to.trim_end_matches(":80");
                let text = text.replace("{n}", &marker);
                let last = format!(
                    "GET /{marker}-last HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
                );
                match exchange(client, to, (text + &last).as_bytes(), PATIENCE) {
                    Ok((answers, silence)) => {
                        let mut seen: Vec<String> = answers
                            .iter()
                            .map(|answer| answer.status.to_string())
                            .collect();
                        if silence {
                            seen.push("silence".to_owned());
                        }
                        Facts::from([("statuses".to_owned(), seen.join(" "))])
                    }
                    Err(error) => failed(&format!("{error:#}")),
                }
            }
            Ask::Frames { to, fields, body } => {
                let fill = |text: &str| text.replace("{n}", &marker);
                let fields: Vec<_> = fields
                    .iter()
                    .map(|(name, value)| (fill(name), fill(value)))
                    .collect();
                match frames(client, to, &fields, body.as_deref(), PATIENCE) {
                    Ok(framed) => {
                        let mut facts = of_body(&framed.body);
                        // How it is refused, by the stream's end or the connection's, is of no account.
                        let outcome = match &framed.outcome[..] {
                            "reset" | "closed" => "refused",
                            other => other,
                        };
                        facts.insert("outcome".to_owned(), outcome.to_owned());
                        facts
                    }
                    Err(error) => failed(&format!("{error:#}")),
                }
            }
            Ask::Upgrade { to, protocol } => upgrade(world, self.from, to, protocol, &marker),
            Ask::Many { to, path, requests } => share(world, self.from, to, path, *requests),
        }
    }

    /// Whether the log is looked at: where a request is sure to have been understood.
    fn is_logged(&self) -> bool {
        matches!(
            self.ask,
            Ask::Http { .. } | Ask::Grpc { .. } | Ask::Upgrade { .. }
        )
    }

    /// The facts that are not as written down.
    pub fn wrong(&self, facts: &Facts) -> Vec<(&str, String)> {
        let wrong = self.holds.iter().filter_map(|(name, wanted)| {
            let found = facts.get(name).map_or("", String::as_str);
            let holds = match wanted.strip_prefix('*') {
                Some(part) => found.contains(part),
                None => found == wanted,
            };
            let told = || format!("{}: {name} is {found:?}, not {wanted:?}", self.what);
            (!holds).then(|| (&name[..], told()))
        });
        wrong.collect()
    }
}

/// Asks all cases of a world, and then looks at its log and at what `heard` heard.
pub fn ask_all(world: &World, cases: &[Case], heard: &Heard) -> Vec<Facts> {
    let next = AtomicUsize::new(0);
    let asking = || {
        let mut seen = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = cases.get(number) else {
                return seen;
            };
            seen.push((number, case.ask(world, number)));
        }
    };
    let mut all = BTreeMap::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(asking)).collect();
        for thread in threads {
            all.extend(thread.join().expect("cases tell errors"));
        }
    });
    let mut all: Vec<Facts> = all.into_values().collect();
    add_records(world, cases, &mut all);
    add_heard(cases, heard, &mut all);
    all
}

/// Every case that was understood has its record in the log: who asks is named by its number.
fn add_records(world: &World, cases: &[Case], all: &mut [Facts]) {
    let logged: Vec<usize> = (0..cases.len()).filter(|n| cases[*n].is_logged()).collect();
    let records = |number: usize, records: &[Record]| -> Vec<Record> {
        let agent = format!("case-{number}");
        let of_case = records.iter().filter(|r| r.get("user_agent") == agent);
        of_case.cloned().collect()
    };
    let begun = Instant::now();
    let found = loop {
        let read = world.records(WAYPOINT);
        let all = logged
            .iter()
            .all(|number| !records(*number, &read).is_empty());
        // One that never comes is a fact of its case.
        if all || begun.elapsed() > LOGGED_WITHIN {
            break read;
        }
        pause();
    };
    for number in logged {
        let mine = records(number, &found);
        for field in ["response_code", "response_flags"] {
            let value = mine.first().map(|record| record.get(field));
            all[number].insert(format!("log: {field}"), value.unwrap_or_default());
        }
        all[number].insert("log: records".to_owned(), mine.len().to_string());
    }
}

/// What reached the application of the cases in bytes and frames, as it is read in one way only.
fn add_heard(cases: &[Case], heard: &Heard, all: &mut [Facts]) {
    let (messages, doubtful) = heard.messages();
    for (number, case) in cases.iter().enumerate() {
        if !matches!(case.ask, Ask::Bytes { .. } | Ask::Frames { .. }) {
            continue;
        }
        let (exact, more) = (format!("/case-{number} "), format!("/case-{number}-"));
        let mine = messages
            .iter()
            .filter(|message| message.line.contains(&exact) || message.line.contains(&more))
            .filter(|message| !message.line.contains("-last "));
        let mut told: Vec<String> = mine
            .map(|message| {
                let line = message.line.replace(&format!("case-{number}"), "{n}");
                let line = line.trim_end_matches(" HTTP/1.1");
                format!("{line} [{}] {:?}", message.field("host"), message.body)
            })
            .collect();
        // A request that can be read in two ways must never be passed on.
        let doubts = doubtful.iter().filter(|text| text.contains(&exact));
        told.extend(doubts.map(|text| format!("IN DOUBT {text}")));
        told.sort();
        all[number].insert("reached".to_owned(), told.join("; "));
    }
}

fn failed(error: &str) -> Facts {
    Facts::from([("error".to_owned(), error.to_owned())])
}

fn of_head(status: u16, headers: &HeaderMap) -> Facts {
    let mut facts = Facts::from([("status".to_owned(), status.to_string())]);
    for name in headers.keys() {
        let values = headers.get_all(name).iter();
        let values: Vec<_> = values
            .map(|value| String::from_utf8_lossy(value.as_bytes()))
            .collect();
        facts.insert(format!("answer: {name}"), values.join(", "));
    }
    facts
}

/// The body, or what the application tells in it.
fn of_body(body: &str) -> Facts {
    let Ok(Value::Object(mut told)) = serde_json::from_str(body) else {
        return Facts::from([("body".to_owned(), body.to_owned())]);
    };
    let mut facts = Facts::new();
    if let Some(Value::Object(headers)) = told.remove("headers") {
        for (name, value) in headers {
            let value = value.as_str().unwrap_or_default();
            facts.insert(format!("upstream: {name}"), value.to_owned());
        }
    }
    for (name, value) in told {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        facts.insert(format!("upstream's {name}"), value);
    }
    // The case's number.
    facts.remove("upstream: user-agent");
    facts
}

fn of_answer(answer: &Answer) -> Facts {
    let mut facts = of_head(answer.status.as_u16(), &answer.headers);
    facts.extend(of_body(&answer.text()));
    facts.insert("version".to_owned(), format!("{:?}", answer.version));
    // What the application tells is compared field by field, not by its length.
    if facts.contains_key("upstream's name") {
        facts.remove("answer: content-length");
    }
    facts
}

fn of_call(called: &Called) -> Facts {
    let mut facts = of_head(called.head.0.as_u16(), &called.head.1);
    facts.insert("grpc-status".to_owned(), called.status().to_owned());
    let message = called.trailers.get("grpc-message");
    let message = message.and_then(|value| value.to_str().ok());
    facts.insert("grpc-message".to_owned(), message.unwrap_or("").to_owned());
    let back = called.messages.len().to_string();
    facts.insert("messages".to_owned(), back);
    facts
}

/// Asks for another protocol, and speaks it.
fn upgrade(world: &World, from: &str, to: &str, protocol: &str, marker: &str) -> Facts {
    use std::io::{Read, Write};

    const FRAME: &[u8] = b"\x81\x85abcdhello";
    let host = to.trim_end_matches(":80");
    let head = format!(
        "GET /socket HTTP/1.1\r\nhost: {host}\r\nuser-agent: {marker}\r\nconnection: Upgrade\r\nupgrade: {protocol}\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
    );
    let mut stream = match world.pod(from).connect(to) {
        Ok(stream) => stream,
        Err(error) => return failed(&error.to_string()),
    };
    let _ = stream.write_all(head.as_bytes());
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        read.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&read).to_ascii_lowercase();
    let status = head.split(' ').nth(1).unwrap_or_default();
    let mut facts = Facts::from([("status".to_owned(), status.to_owned())]);
    for field in ["upgrade", "connection"] {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        if let Some((_, value)) = lines.find(|(name, _)| *name == field) {
            facts.insert(format!("answer: {field}"), value.to_owned());
        }
    }
    if status == "101" {
        let mut echoed = 0;
        for _ in 0..20 {
            let mut back = [0; FRAME.len()];
            let spoke = stream
                .write_all(FRAME)
                .and_then(|()| stream.read_exact(&mut back));
            echoed += u32::from(spoke.is_ok() && back == FRAME);
        }
        facts.insert("echoed".to_owned(), echoed.to_string());
    }
    facts
}

/// How many of a hundred requests v2 answers, as far as it is not 10, give or take 3.
fn share(world: &World, from: &str, to: &str, path: &str, requests: u32) -> Facts {
    let counted = || -> anyhow::Result<u32> {
        let mut connection = world.pod(from).http(to, Version::HTTP_11)?;
        let mut second = 0;
        for _ in 0..requests {
            let answer = connection.send(Method::GET, path, &[], Bytes::new())?;
            second += u32::from(answer.json()["name"] == "v2");
        }
        Ok(second)
    };
    match counted() {
        Ok(second) => {
            let share = f64::from(second) / f64::from(requests) * 100.0;
            let told = if (share - 10.0).abs() <= 3.0 {
                "10 ± 3".to_owned()
            } else {
                share.to_string()
            };
            Facts::from([("share of v2".to_owned(), told)])
        }
        Err(error) => failed(&format!("{error:#}")),
    }
}
