//! What a connection leaves behind: counters by label and one line.

use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ambit_model::identity::Identity;
use ambit_model::reason::Reason;
use ambit_model::workload::Workload;
use ambit_observe::access::filter::Filter;
use ambit_observe::access::{AccessLog, Direction};
use ambit_observe::logging::LogFormat;
use ambit_observe::metrics::{Format, Registry};
use ambit_observe::writer::LogWriter;
use ambit_relay::Meter;
use parking_lot::Mutex;

use super::{Outcome, Record};
use crate::metrics::{Metrics, Telemetry};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct World {
    registry: Registry,
    telemetry: Rc<Telemetry>,
    writer: LogWriter,
    lines: Lines,
    _subscriber: tracing::subscriber::DefaultGuard,
}

impl World {
    fn new() -> Self {
        Self::with(None)
    }

    fn with(filter: Option<Filter>) -> Self {
        let registry = Registry::default();
        let lines = Lines::default();
        let (logging, subscriber) =
            ambit_observe::logging::Logging::build(LogFormat::Json, "info", lines.clone()).unwrap();
        let subscriber = tracing::subscriber::set_default(subscriber);
        let access = AccessLog::new(&logging).filtered(filter);
        let telemetry = Telemetry::new(Metrics::new(&registry), access);
        Self {
            registry,
            telemetry: Rc::new(telemetry),
            writer: logging.writer().clone(),
            lines,
            _subscriber: subscriber,
        }
    }

    fn value(&self, metric: &str, having: &str) -> Option<f64> {
        let text = self.registry.render(Format::Text);
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{metric}{{")) && line.contains(having))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    fn log(&self) -> Vec<serde_json::Value> {
        assert!(self.writer.flush(Duration::from_secs(5)));
        let text = String::from_utf8(self.lines.0.lock().clone()).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

fn workload(name: &str) -> Arc<Workload> {
    let identity: Identity = format!("spiffe://cluster.local/ns/shop/sa/{name}")
        .parse()
        .unwrap();
    let mut workload = Workload::new(format!("c//Pod/shop/{name}").into(), name, identity);
    workload.workload_name = name.into();
    Arc::new(workload)
}

fn record(world: &World, direction: Direction) -> Record {
    let mut record = Record::new(
        &world.telemetry,
        direction,
        "10.0.0.1:4000".parse().unwrap(),
    );
    let (web, cart) = (workload("web"), workload("cart"));
    record.source.identity = Some(web.identity.clone());
    record.destination.identity = Some(cart.identity.clone());
    record.source.workload = Some(web);
    record.destination.workload = Some(cart);
    record
}

#[test]
fn counts_bytes_from_the_client_as_received_and_mirrors_the_inbound_log() {
    for (direction, reporter, logged) in [
        (Direction::Outbound, "reporter=\"source\"", (11, 22)),
        (Direction::Inbound, "reporter=\"destination\"", (22, 11)),
    ] {
        let world = World::new();
        let mut record = record(&world, direction);
        record.open();
        record.sent(11);
        record.received(22);
        record.finish(&Reason::Ok.into());
        assert_eq!(
            world.value("istio_tcp_received_bytes_total", reporter),
            Some(11.0)
        );
        assert_eq!(
            world.value("istio_tcp_sent_bytes_total", reporter),
            Some(22.0)
        );
        assert_eq!(
            world.value("istio_tcp_connections_opened_total", reporter),
            Some(1.0)
        );
        assert_eq!(
            world.value("istio_tcp_connections_closed_total", reporter),
            Some(1.0)
        );
        assert_eq!(world.value("istio_tcp_sockets_open", reporter), Some(0.0));
        let log = world.log();
        assert_eq!(log.len(), 1);
        assert_eq!(
            (log[0]["bytes_sent"].as_u64(), log[0]["bytes_recv"].as_u64()),
            (Some(logged.0), Some(logged.1))
        );
        assert_eq!(log[0]["level"], "info");
        assert_eq!(
            log[0]["src.identity"],
            "spiffe://cluster.local/ns/shop/sa/web"
        );
        assert_eq!(log[0]["error"], serde_json::Value::Null);
    }
}

#[test]
fn bytes_are_counted_while_the_connection_is_open() {
    let world = World::new();
    let mut record = record(&world, Direction::Outbound);
    record.open();
    for _ in 0..3 {
        record.sent(5);
        record.received(7);
    }
    let value = |metric| world.value(metric, "reporter=\"source\"");
    assert_eq!(value("istio_tcp_received_bytes_total"), Some(15.0));
    assert_eq!(value("istio_tcp_sent_bytes_total"), Some(21.0));
    assert_eq!(value("istio_tcp_connections_closed_total"), None);
    record.finish(&Reason::Ok.into());
    assert_eq!(value("istio_tcp_sent_bytes_total"), Some(21.0));
}

#[test]
fn only_what_the_filter_admits_is_written_and_all_is_counted() {
    let failures = Filter::parse(r#"error != "" && src.workload == "web""#).unwrap();
    let world = World::with(Some(failures));
    for reason in [Reason::Ok, Reason::PolicyDenied, Reason::Ok] {
        let mut record = record(&world, Direction::Inbound);
        record.open();
        record.finish(&reason.into());
    }
    let log = world.log();
    assert_eq!(log.len(), 1, "{log:?}");
    let error = log[0]["error"].as_str().unwrap();
    assert_eq!(error, Reason::PolicyDenied.to_string());
    let opened = world.value("istio_tcp_connections_opened_total", "destination");
    assert_eq!(opened, Some(3.0));
}

#[test]
fn a_refusal_is_opened_closed_and_failed_with_its_flag() {
    let world = World::new();
    record(&world, Direction::Inbound).finish(&Reason::NotAllowed.into());
    let denied = "response_flags=\"DENY\"";
    let opened = world.value("istio_tcp_connections_opened_total", "response_flags=\"-\"");
    assert_eq!(opened, Some(1.0));
    assert_eq!(
        world.value("istio_tcp_connections_closed_total", denied),
        Some(1.0)
    );
    assert_eq!(
        world.value("istio_tcp_connections_failed_total", denied),
        Some(1.0)
    );
    let log = world.log();
    assert_eq!(log[0]["level"], "error");
    assert_eq!(log[0]["error"], "allow policies exist, but none allowed");
}

#[test]
fn a_dropped_connection_still_leaves_one_record() {
    let world = World::new();
    let mut dropped = record(&world, Direction::Outbound);
    dropped.open();
    drop(dropped);
    let log = world.log();
    assert_eq!(log.len(), 1);
    assert_eq!(log[0]["error"], Outcome::from(Reason::Drained).detail);
    assert_eq!(
        world.value("istio_tcp_connections_closed_total", "response_flags=\"-\""),
        Some(1.0)
    );
}

#[test]
fn one_label_set_is_kept_for_one_pair_and_let_go_when_unused() {
    let world = World::new();
    for _ in 0..3 {
        record(&world, Direction::Outbound).finish(&Reason::Ok.into());
    }
    let opened = world.value("istio_tcp_connections_opened_total", "reporter=\"source\"");
    assert_eq!(opened, Some(3.0));
    world.telemetry.sweep();
    world.telemetry.sweep();
    assert!(format!("{:?}", world.telemetry).contains("kept: 0"));
}
