use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::*;
use crate::admin;
use crate::logging::{LogFormat, Logging};
use crate::metrics::Registry;

crate::series! {
    struct Requests {
        seen: Counter = ("requests", "Requests."),
    }
}

async fn start(routes: Routes) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, routes, std::future::pending()));
    address
}

async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn call(address: SocketAddr, method: &str, target: &str, headers: &str) -> (u16, String) {
    let request =
        format!("{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    let answer = exchange(address, &request).await;
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test]
async fn levels_change_by_post_only() {
    let (logging, _subscriber) = Logging::build(LogFormat::Plain, "info", io::sink()).unwrap();
    let (quit, mut asked) = mpsc::channel(1);
    let address = start(admin::routes(&logging, quit)).await;
    assert_eq!(
        call(address, "GET", "/logging?level=debug", "").await.0,
        405
    );
    let (status, text) = call(address, "POST", "/logging?level=xds%3Ddebug", "").await;
    assert_eq!(
        (status, text.as_str()),
        (200, "current log level is info,xds=debug\n")
    );
    assert_eq!(
        call(address, "POST", "/logging?level=loud", "").await.0,
        400
    );
    let cross = "origin: http://elsewhere.example\r\n";
    assert_eq!(
        call(address, "POST", "/logging?level=off", cross).await.0,
        403
    );
    assert_eq!(logging.levels(), "info,xds=debug");
    assert_eq!(call(address, "POST", "/logging?reset", "").await.0, 200);
    assert_eq!(logging.levels(), "info");
    assert_eq!(call(address, "GET", "/quitquitquit", "").await.0, 405);
    assert!(asked.try_recv().is_err());
    assert_eq!(call(address, "POST", "/quitquitquit", "").await.0, 200);
    assert_eq!(asked.recv().await, Some(()));
    let (_, list) = call(address, "GET", "/", "").await;
    assert!(list.contains("POST  /logging"), "{list}");
}

#[tokio::test]
async fn readiness_names_what_is_pending() {
    let waiting = Arc::new(RwLock::new(vec!["xds".to_owned(), "proxy".to_owned()]));
    let seen = waiting.clone();
    let address = start(admin::readiness_routes(move || seen.read().clone())).await;
    let (status, text) = call(address, "GET", "/healthz/ready", "").await;
    assert_eq!(
        (status, text.as_str()),
        (500, "not ready, pending: proxy, xds\n")
    );
    waiting.write().clear();
    assert_eq!(
        call(address, "GET", "/healthz/ready", "").await,
        (200, "ready\n".to_owned())
    );
    assert_eq!(call(address, "GET", "/healthz", "").await.0, 404);
    assert_eq!(call(address, "POST", "/healthz/ready", "").await.0, 405);
}

#[tokio::test]
async fn levels_are_shown_and_changed_by_the_queries_of_istioctl() {
    let (logging, _subscriber) =
        Logging::build(LogFormat::Plain, "info,access=off", io::sink()).unwrap();
    let (quit, _quits) = mpsc::channel(1);
    let address = start(admin::routes(&logging, quit)).await;
    for (query, levels) in [
        ("?level=", "info,access=off"),
        ("?level=debug", "debug,access=off"),
        ("?level=access:debug,info", "info,access=debug"),
        (
            "?level=ztunnel::proxy:trace",
            "info,access=debug,ztunnel::proxy=trace",
        ),
        ("?level=off", "off,access=debug,ztunnel::proxy=trace"),
        ("?level=info&reset", "info,access=off"),
        ("?level=xds%3Ddebug", "info,access=off,xds=debug"),
        ("?reset", "info,access=off"),
    ] {
        let (status, text) = call(address, "POST", &format!("/logging{query}"), "").await;
        assert_eq!(status, 200, "{query}: {text}");
        assert_eq!(text, format!("current log level is {levels}\n"), "{query}");
    }
    for wrong in ["?level=loud", "?level=access", "?level=a:loud"] {
        let (status, _) = call(address, "POST", &format!("/logging{wrong}"), "").await;
        assert_eq!(status, 400, "{wrong}");
    }
    assert_eq!(call(address, "GET", "/logging", "").await.0, 405);
}

#[tokio::test]
async fn the_format_of_metrics_follows_accept() {
    let registry = Registry::default();
    registry
        .family::<Requests>()
        .resolve(|labels| labels.open("a", "b"))
        .seen
        .inc();
    let address = start(admin::metrics_routes(&registry)).await;
    for path in ["/metrics", "/stats/prometheus"] {
        let (_, text) = call(address, "GET", path, "").await;
        assert!(text.contains("# TYPE requests_total counter") && !text.contains("# EOF"));
        let accept = "accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
        let (_, text) = call(address, "GET", path, accept).await;
        assert!(
            text.contains("# TYPE requests counter") && text.contains("# EOF"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_head_that_does_not_come_or_is_too_long_ends_the_connection() {
    let address = start(Routes::default()).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    silent.write_all(b"GET / HT").await.unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(20), silent.read_to_end(&mut rest));
    assert!(ended.await.is_ok(), "the head timeout must end it");
    let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(MAX_HEAD));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(long.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 431");
}

#[test]
fn query_strings_decode() {
    let pairs = parse_query("level=a%3Ddebug,b&&reset&x=1+2%zz&%41=%");
    let expected = [
        ("level", "a=debug,b"),
        ("reset", ""),
        ("x", "1 2%zz"),
        ("A", "%"),
    ];
    assert_eq!(pairs.len(), expected.len());
    for ((key, value), (wanted_key, wanted)) in pairs.iter().zip(expected) {
        assert_eq!((key.as_str(), value.as_str()), (wanted_key, wanted));
    }
}
