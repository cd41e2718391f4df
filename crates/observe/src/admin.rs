//! The routes that every program has: log levels, metrics, readiness, stop.

use std::time::Instant;

use http::StatusCode;
use tokio::sync::mpsc;

use crate::logging::Logging;
use crate::metrics::{Format, Registry};
use crate::server::{Answer, Routes};

/// Routes of an admin server: `/` lists all routes, `/logging` shows and changes levels,
/// `/quitquitquit` asks for the same graceful stop as a signal, by one message on `quit`.
///
/// # Assumptions
/// The caller binds it to localhost.
pub fn routes(logging: &Logging, quit: mpsc::Sender<()>) -> Routes {
    let routes = Routes::default();
    let logging = logging.clone();
    let about = "POST: log levels; ?level=debug, ?level=xds=debug,access=off, ?reset";
    routes.post("/logging", about, move |call| {
        if call.param("reset").is_some() {
            logging.reset_levels();
        }
        match call
            .param("level")
            .map(|level| logging.change_levels(level))
        {
            Some(Err(error)) => Answer::text(StatusCode::BAD_REQUEST, format!("{error}\n")),
            Some(Ok(())) | None => Answer::text(
                StatusCode::OK,
                format!("current log level is {}\n", logging.levels()),
            ),
        }
    });
    routes.post("/quitquitquit", "POST: stop as on SIGTERM", move |_| {
        // A full channel means that somebody asked already.
        let _ = quit.try_send(());
        Answer::text(StatusCode::OK, "shutdown now\n")
    });
    let listed = routes.clone();
    routes.get("/", "this list", move |_| {
        let line = |(method, path, about): (String, String, &str)| {
            format!("{method:5} {path:30} {about}\n")
        };
        Answer::text(
            StatusCode::OK,
            listed.index().into_iter().map(line).collect::<String>(),
        )
    });
    routes
}

/// Routes of the metrics server: `/stats/prometheus` and `/metrics`. Each scrape first removes
/// label sets that were idle for long.
pub fn metrics_routes(registry: &Registry) -> Routes {
    let routes = Routes::default();
    for path in ["/stats/prometheus", "/metrics"] {
        let registry = registry.clone();
        routes.get(
            path,
            "metrics, Prometheus text or OpenMetrics by Accept",
            move |call| {
                registry.expire(Instant::now());
                let format = Format::for_accept(call.header("accept"));
                Answer::pieces(format.content_type(), registry.exposition(format))
            },
        );
    }
    routes
}

/// Routes of the readiness server: `/healthz/ready` answers 200, or 500 with the names that
/// `pending` still waits for.
pub fn readiness_routes(pending: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Routes {
    let routes = Routes::default();
    routes.get("/healthz/ready", "readiness", move |_| {
        let mut names = pending();
        if names.is_empty() {
            return Answer::text(StatusCode::OK, "ready\n");
        }
        names.sort();
        let text = format!("not ready, pending: {}\n", names.join(", "));
        Answer::text(StatusCode::INTERNAL_SERVER_ERROR, text)
    });
    routes
}
