use std::sync::Arc;
use std::time::Duration;

use tracing::subscriber::with_default;

use super::*;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn lines(format: LogFormat, filter: &str, body: impl FnOnce(&Logging)) -> String {
    let sink = Sink::default();
    let (logging, subscriber) = Logging::build(format, filter, sink.clone()).unwrap();
    with_default(subscriber, || body(&logging));
    assert!(logging.writer().flush(Duration::from_secs(10)));
    let bytes = sink.0.lock().clone();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn plain_lines_have_time_level_target_message_and_fields() {
    let text = lines(LogFormat::Plain, "info", |_| {
        let address = std::net::Ipv4Addr::LOCALHOST;
        tracing::info!(target: "ambit_xds::client", n = 3, name = "a b", %address, "connected");
    });
    let (time, rest) = text.split_once('\t').unwrap();
    assert!(
        time.ends_with('Z') && time.len() == "2026-01-01T00:00:00.000000Z".len(),
        "{time}"
    );
    assert_eq!(
        rest,
        "info\txds::client\tconnected\tn=3 name=\"a b\" address=127.0.0.1\n"
    );
}

#[test]
fn json_lines_are_one_flat_object() {
    let text = lines(LogFormat::Json, "info", |_| {
        let span = tracing::info_span!("pod", uid = "u1");
        let _entered = span.enter();
        tracing::warn!(target: "ambit_xds", ok = false, note = "say \"hi\"\n", "odd");
    });
    let value: serde_json::Value = serde_json::from_str(text.trim_end()).unwrap();
    assert_eq!(text.lines().count(), 1);
    assert_eq!(value["level"], "warn");
    assert_eq!(value["scope"], "xds");
    assert_eq!(value["message"], "odd");
    assert_eq!(value["ok"], false);
    assert_eq!(value["note"], "say \"hi\"\n");
    assert_eq!(value["span"], "pod{uid=\"u1\"}");
}

#[test]
fn levels_change_while_running_and_reset() {
    let text = lines(LogFormat::Plain, "info", |logging| {
        tracing::debug!(target: "ambit_xds", "1");
        logging.change_levels("xds=debug").unwrap();
        tracing::debug!(target: "ambit_xds", "2");
        tracing::debug!(target: "ambit_other", "3");
        assert!(logging.change_levels("xds=loud").is_err());
        assert_eq!(logging.levels(), "info,xds=debug");
        logging.reset_levels();
        tracing::debug!(target: "ambit_xds", "4");
        assert_eq!(logging.levels(), "info");
    });
    let seen: Vec<_> = text
        .lines()
        .map(|line| line.split('\t').nth(3).unwrap())
        .collect();
    assert_eq!(seen, ["2"]);
}

#[test]
fn a_message_cannot_forge_a_second_line() {
    for format in [LogFormat::Plain, LogFormat::Json] {
        let text = lines(format, "info", |_| {
            let from_peer = "x\n2026-01-01T00:00:00Z\terror\tforged\r\tline";
            tracing::info!(%from_peer, "got {from_peer}");
        });
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(!text.contains("\tforged"), "{text}");
    }
}
