//! What a collector gets, and what happens when it does not take it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ambit_observe::access::{Direction, Endpoint, Record, Sink, Trace};
use ambit_observe::metrics::{Format, Registry};
use ambit_proto::opentelemetry::proto::collector::logs::v1::ExportLogsPartialSuccess;
use ambit_proto::otlp::logs_service_server::{LogsService, LogsServiceServer};
use ambit_proto::otlp::trace_service_server::{TraceService, TraceServiceServer};
use ambit_proto::otlp::{
    ExportLogsServiceRequest, ExportLogsServiceResponse, ExportTraceServiceRequest,
    ExportTraceServiceResponse, KeyValue, any_value,
};
use ambit_tls::KeyExchange;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::Exporter;
use crate::{Finish, Sampling, Settings, Target};

/// A thing that happens within a second or two on an idle machine.
const BOUND: Duration = Duration::from_secs(20);

/// A collector that does as it is told, in order, and then takes everything.
#[derive(Clone)]
struct Collector {
    logs: mpsc::UnboundedSender<(ExportLogsServiceRequest, String)>,
    spans: mpsc::UnboundedSender<ExportTraceServiceRequest>,
    moods: Arc<Mutex<Vec<Mood>>>,
}

#[derive(Clone, Copy)]
enum Mood {
    Away,
    Refuses,
    TakesOneLess,
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let header = request.metadata().get("x-key");
        let header = header.map(|value| value.to_str().unwrap().to_owned());
        let mood = {
            let mut moods = self.moods.lock();
            (!moods.is_empty()).then(|| moods.remove(0))
        };
        let mut answer = ExportLogsServiceResponse::default();
        match mood {
            Some(Mood::Away) => return Err(Status::unavailable("not now")),
            Some(Mood::Refuses) => return Err(Status::invalid_argument("never")),
            Some(Mood::TakesOneLess) => {
                answer.partial_success = Some(ExportLogsPartialSuccess {
                    rejected_log_records: 1,
                    error_message: "too old".to_owned(),
                });
            }
            None => {}
        }
        let told = (request.into_inner(), header.unwrap_or_default());
        self.logs.send(told).unwrap();
        Ok(Response::new(answer))
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.spans.send(request.into_inner()).unwrap();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

struct World {
    exporter: Arc<Exporter>,
    finish: Finish,
    registry: Registry,
    logs: mpsc::UnboundedReceiver<(ExportLogsServiceRequest, String)>,
    spans: mpsc::UnboundedReceiver<ExportTraceServiceRequest>,
}

fn settings(address: SocketAddr, queue: usize, sampling: Sampling) -> Settings {
    let target = Target {
        endpoint: format!("http://{address}"),
        certificate: None,
        headers: vec![("X-Key".to_owned(), "hush".to_owned())],
        timeout: Duration::from_secs(5),
    };
    Settings {
        logs: Some(target.clone()),
        traces: Some((target, sampling)),
        resource: vec![("service.name".to_owned(), "ztunnel".to_owned())],
        queue,
    }
}

impl World {
    async fn new(moods: &[Mood], sampling: Sampling) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (send_logs, logs) = mpsc::unbounded_channel();
        let (send_spans, spans) = mpsc::unbounded_channel();
        let collector = Collector {
            logs: send_logs,
            spans: send_spans,
            moods: Arc::new(Mutex::new(moods.to_vec())),
        };
        let served = tonic::transport::Server::builder()
            .add_service(LogsServiceServer::new(collector.clone()))
            .add_service(TraceServiceServer::new(collector))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(served);
        let registry = Registry::default();
        let settings = settings(address, 16, sampling);
        let (exporter, task, finish) =
            Exporter::new(&settings, KeyExchange::default(), &registry).unwrap();
        tokio::spawn(task);
        Self {
            exporter,
            finish,
            registry,
            logs,
            spans,
        }
    }

    fn metric(&self, name: &str, labels: &str) -> String {
        let page = self.registry.render(Format::Text);
        let start = format!("{name}{{{labels}}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or("none").to_owned()
    }
}

const TRACE: Trace = Trace {
    trace_id: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
    span_id: 0x1112_1314_1516_1718,
    parent_id: Some(0x2122_2324_2526_2728),
};

fn record<'a>(error: Option<&'a &'a str>) -> Record<'a> {
    Record {
        source_address: Some("10.0.0.1:4000".parse().unwrap()),
        source: Endpoint {
            workload: "web-1",
            namespace: "shop",
            ..Endpoint::default()
        },
        service: "cart.shop.svc.cluster.local",
        direction: Direction::Inbound,
        bytes_sent: 10,
        bytes_received: 20,
        duration: Duration::from_millis(1500),
        error: error.map(|error| error as &dyn ambit_observe::access::Shown),
        trace: Some(TRACE),
        ..Record::default()
    }
}

/// Attributes as text.
fn pairs(attributes: &[KeyValue]) -> Vec<(String, String)> {
    let text = |pair: &KeyValue| match pair.value.as_ref().unwrap().value.as_ref().unwrap() {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    attributes
        .iter()
        .map(|pair| (pair.key.clone(), text(pair)))
        .collect()
}

fn has(attributes: &[KeyValue], wanted: &[(&str, &str)]) {
    let found = pairs(attributes);
    for (key, value) in wanted {
        let pair = ((*key).to_owned(), (*value).to_owned());
        assert!(found.contains(&pair), "{pair:?} not in {found:?}");
    }
}

const KNOWN: [(&str, &str); 7] = [
    ("src.addr", "10.0.0.1:4000"),
    ("src.workload", "web-1"),
    ("src.namespace", "shop"),
    ("dst.service", "cart.shop.svc.cluster.local"),
    ("direction", "inbound"),
    ("bytes_sent", "10"),
    ("bytes_recv", "20"),
];

#[tokio::test]
async fn a_connection_becomes_a_log_record_and_a_span() {
    let mut world = World::new(&[], Sampling::Always).await;
    world.exporter.take(&record(None), true);
    world.exporter.take(&record(Some(&"denied")), true);

    let (request, header) = timeout(BOUND, world.logs.recv()).await.unwrap().unwrap();
    assert_eq!(header, "hush");
    let [of] = &request.resource_logs[..] else {
        panic!("one resource")
    };
    let resource = of.resource.as_ref().unwrap();
    has(&resource.attributes, &[("service.name", "ztunnel")]);
    let [good, bad] = &of.scope_logs[0].log_records[..] else {
        panic!("two records")
    };
    assert_eq!((good.severity_number, bad.severity_number), (9, 17));
    assert_eq!(good.trace_id, TRACE.trace_id.to_be_bytes());
    assert_eq!(good.span_id, TRACE.span_id.to_be_bytes());
    has(&good.attributes, &KNOWN);
    has(&good.attributes, &[("duration", "1500ms")]);
    has(&bad.attributes, &[("error", "denied")]);

    let request = timeout(BOUND, world.spans.recv()).await.unwrap().unwrap();
    let [good, bad] = &request.resource_spans[0].scope_spans[0].spans[..] else {
        panic!("two spans")
    };
    has(&good.attributes, &KNOWN);
    assert_eq!(good.trace_id, TRACE.trace_id.to_be_bytes());
    assert_eq!(good.parent_span_id, TRACE.parent_id.unwrap().to_be_bytes());
    assert_eq!((good.name.as_str(), good.kind), ("inbound connection", 2));
    let lasted = good.end_time_unix_nano - good.start_time_unix_nano;
    assert_eq!(lasted, 1_500_000_000);
    assert!(good.status.is_none());
    let status = bad.status.as_ref().unwrap();
    assert_eq!((status.code, status.message.as_str()), (2, "denied"));

    world.finish.wait(BOUND).await;
    let taken = "ambit_otlp_exported_records_total";
    assert_eq!(world.metric(taken, "signal=\"logs\""), "2");
    assert_eq!(world.metric(taken, "signal=\"traces\""), "2");
}

#[tokio::test]
async fn what_the_filter_does_not_admit_is_a_span_alone_and_what_is_not_sampled_a_record_alone() {
    let mut world = World::new(&[], Sampling::Ratio(0)).await;
    world.exporter.take(&record(None), false);
    world.exporter.take(&record(None), true);
    world.finish.wait(BOUND).await;
    let (request, _) = world.logs.recv().await.unwrap();
    let records = &request.resource_logs[0].scope_logs[0].log_records;
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].flags, 0);
    assert!(world.spans.try_recv().is_err());

    let mut world = World::new(&[], Sampling::Always).await;
    world.exporter.take(&record(None), false);
    world.finish.wait(BOUND).await;
    assert!(world.spans.recv().await.is_some());
    assert!(world.logs.try_recv().is_err());
}

#[tokio::test]
async fn a_collector_that_is_away_for_a_moment_gets_the_batch_later() {
    let mut world = World::new(&[Mood::Away, Mood::Away], Sampling::Ratio(0)).await;
    world.exporter.take(&record(None), true);
    let got = timeout(BOUND, world.logs.recv()).await.unwrap();
    assert!(got.is_some());
    world.finish.wait(BOUND).await;
    let taken = "ambit_otlp_exported_records_total";
    assert_eq!(world.metric(taken, "signal=\"logs\""), "1");
}

#[tokio::test]
async fn what_is_refused_or_taken_in_part_is_counted_as_lost() {
    let moods = [Mood::Refuses, Mood::TakesOneLess];
    let world = World::new(&moods, Sampling::Ratio(0)).await;
    let lost = |reason: &str| {
        let labels = format!("signal=\"logs\",reason=\"{reason}\"");
        world.metric("ambit_otlp_dropped_records_total", &labels)
    };
    world.exporter.take(&record(None), true);
    world.finish.wait(BOUND).await;
    assert_eq!(lost("not delivered"), "1");
    for _ in 0..3 {
        world.exporter.take(&record(None), true);
    }
    world.finish.wait(BOUND).await;
    assert_eq!(lost("rejected"), "1");
    let taken = "ambit_otlp_exported_records_total";
    assert_eq!(world.metric(taken, "signal=\"logs\""), "2");
}

#[tokio::test]
async fn a_full_queue_drops_and_counts_and_nobody_waits() {
    // Nothing empties this queue.
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let registry = Registry::default();
    let settings = settings(nobody, 4, Sampling::Always);
    let (exporter, task, finish) =
        Exporter::new(&settings, KeyExchange::default(), &registry).unwrap();
    for _ in 0..10 {
        exporter.take(&record(None), true);
    }
    let page = registry.render(Format::Text);
    for signal in ["logs", "traces"] {
        let line = format!(
            "ambit_otlp_dropped_records_total{{signal=\"{signal}\",reason=\"queue full\"}} 6\n"
        );
        assert!(page.contains(&line), "{page}");
    }
    // And a collector that is not there does not keep the program from ending.
    tokio::spawn(task);
    timeout(BOUND, finish.wait(Duration::from_secs(10)))
        .await
        .unwrap();
    let page = registry.render(Format::Text);
    let lost = "signal=\"logs\",reason=\"not delivered\"} 4\n";
    assert!(page.contains(lost), "{page}");
}

#[tokio::test]
async fn an_endpoint_or_header_that_cannot_be_used_is_refused() {
    let registry = Registry::default();
    let good = settings(([127, 0, 0, 1], 1).into(), 4, Sampling::Always);
    for endpoint in ["collector:4317", "ftp://collector", "http://", "https://"] {
        let mut wrong = good.clone();
        wrong.logs.as_mut().unwrap().endpoint = endpoint.to_owned();
        assert!(
            Exporter::new(&wrong, KeyExchange::default(), &registry).is_err(),
            "{endpoint}"
        );
    }
    let mut wrong = good;
    wrong.logs.as_mut().unwrap().headers = vec![("a b".to_owned(), String::new())];
    let error = Exporter::new(&wrong, KeyExchange::default(), &registry)
        .err()
        .unwrap();
    assert_eq!(error.to_string(), "header \"a b\" cannot be sent");
}
