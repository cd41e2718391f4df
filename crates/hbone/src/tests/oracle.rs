//! Our engine against somebody else's: the h2 crate at one end, and the same schedules between two of our own.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use ambit_relay::Sink;
use ambit_tls::Peer;
use ambit_wire::authority::Authority;
use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::strategy::Just;
use proptest::test_runner::{Config, TestRunner};
use proptest::{collection, prop_assert, prop_assert_eq};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::task::spawn_local;

use super::{close, live, read, write};
use crate::client::{Tunnel, handshake};
use crate::server::serve;
use crate::{OpenError, Request, Settings, StreamSink, StreamSource, TunnelError};

/// What both sides of one stream do. Each sends its pieces, and reads what comes at the same time.
#[derive(Debug, Clone)]
struct Plan {
    /// Otherwise the server refuses.
    accepted: bool,
    ask: Vec<usize>,
    ask_resets: bool,
    answer: Vec<usize>,
    answer_resets: bool,
}

/// How the connection is.
#[derive(Debug, Clone)]
struct Shape {
    pipe: usize,
    /// Read and written at once, at most.
    step: usize,
    client_window: u32,
    server_window: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    Theirs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Reset,
}

/// What one side got.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Got {
    status: u16,
    bytes: Vec<u8>,
    end: Option<End>,
}

/// The bytes that one side of a stream sends.
fn said(stream: usize, pieces: &[usize]) -> Vec<u8> {
    let total: usize = pieces.iter().sum();
    (0..total)
        .map(|n| (n / 7 + stream * 31).to_le_bytes()[0])
        .collect()
}

/// A pipe through which few bytes go at a time: how many changes from one time to the next.
struct Chopped {
    io: DuplexStream,
    step: usize,
    state: usize,
}

impl Chopped {
    fn new(io: DuplexStream, step: usize) -> Self {
        let state = step;
        Self { io, step, state }
    }

    fn next(&mut self) -> usize {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005) ^ 0x5851;
        1 + (self.state >> 33) % self.step
    }
}

impl AsyncRead for Chopped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut space = vec![0; self.next().min(buf.remaining())];
        let mut part = ReadBuf::new(&mut space);
        std::task::ready!(Pin::new(&mut self.io).poll_read(cx, &mut part))?;
        buf.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Chopped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let most = self.next().min(bytes.len());
        Pin::new(&mut self.io).poll_write(cx, &bytes[..most])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

enum Tx {
    Ours(StreamSink),
    Theirs(h2::SendStream<Bytes>),
}

impl Tx {
    /// Sends all of it; false if the stream broke.
    async fn send(&mut self, mut data: Bytes) -> bool {
        match self {
            Self::Ours(sink) => write(sink, data).await.is_ok(),
            Self::Theirs(stream) => {
                while !data.is_empty() {
                    stream.reserve_capacity(data.len());
                    if stream.capacity() == 0 {
                        let more = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
                        if !matches!(more, Some(Ok(_))) {
                            return false;
                        }
                    }
                    let room = stream.capacity().min(data.len());
                    if room > 0 && stream.send_data(data.split_to(room), false).is_err() {
                        return false;
                    }
                }
                true
            }
        }
    }

    async fn finish(&mut self, resets: bool) {
        match (self, resets) {
            (Self::Ours(sink), true) => sink.reset(),
            (Self::Theirs(stream), true) => stream.send_reset(h2::Reason::CANCEL),
            // Fails only if the other side has reset the stream.
            (Self::Ours(sink), false) => drop(close(sink).await),
            (Self::Theirs(stream), false) => drop(stream.send_data(Bytes::new(), true)),
        }
    }
}

enum Rx {
    Ours(StreamSource),
    Theirs(h2::RecvStream),
}

impl Rx {
    async fn all(&mut self) -> (Vec<u8>, Option<End>) {
        let mut bytes = Vec::new();
        loop {
            let next = match self {
                Self::Ours(source) => match read(source).await {
                    Ok(next) => Ok(next),
                    Err(error) => Err(error.kind() == ErrorKind::ConnectionReset),
                },
                Self::Theirs(stream) => match stream.data().await {
                    None => Ok(None),
                    Some(Ok(piece)) => {
                        // Fails only if more is given back than came.
                        stream.flow_control().release_capacity(piece.len()).unwrap();
                        Ok(Some(piece))
                    }
                    Some(Err(error)) => Err(error.is_reset()),
                },
            };
            match next {
                Ok(Some(piece)) => bytes.extend_from_slice(&piece),
                Ok(None) => return (bytes, Some(End::Whole)),
                Err(reset) => return (bytes, reset.then_some(End::Reset)),
            }
        }
    }
}

/// One side of one stream: sends, and reads at the same time. Holds both halves until both are done.
async fn act(mut tx: Tx, mut rx: Rx, bytes: Vec<u8>, pieces: Vec<usize>, resets: bool) -> Got {
    let sending = async {
        let mut rest = Bytes::from(bytes);
        for piece in pieces {
            if !tx.send(rest.split_to(piece)).await {
                break;
            }
        }
        tx.finish(resets).await;
    };
    let ((), (bytes, end)) = tokio::join!(sending, rx.all());
    Got {
        status: 200,
        bytes,
        end,
    }
}

enum Client {
    Ours(Tunnel),
    Theirs(h2::client::SendRequest<Bytes>),
}

impl Client {
    async fn run(self, stream: usize, plan: Plan) -> Got {
        let authority = format!("10.0.0.1:{}", stream + 1);
        let refused = |status: StatusCode| Got {
            status: status.as_u16(),
            ..Got::default()
        };
        let (tx, rx) = match self {
            Self::Ours(tunnel) => {
                let request = Request {
                    authority: Authority::parse(authority.as_bytes()).unwrap(),
                    headers: HeaderMap::new(),
                };
                match tunnel.open(request).await {
                    Ok(opened) => {
                        let (source, sink) = opened.stream.split();
                        (Tx::Ours(sink), Rx::Ours(source))
                    }
                    Err(OpenError::Refused { status, .. }) => return refused(status),
                    Err(OpenError::Reset(_)) => return Got::default(),
                    Err(other) => panic!("{other:?}"),
                }
            }
            Self::Theirs(send) => {
                let request = http::Request::builder()
                    .method(Method::CONNECT)
                    .uri(authority)
                    .body(())
                    .unwrap();
                let mut send = send.ready().await.unwrap();
                let (answer, stream) = send.send_request(request, false).unwrap();
                match answer.await {
                    Ok(answer) if answer.status() == StatusCode::OK => {
                        (Tx::Theirs(stream), Rx::Theirs(answer.into_body()))
                    }
                    Ok(answer) => return refused(answer.status()),
                    Err(error) => {
                        assert!(error.is_reset(), "{error}");
                        return Got::default();
                    }
                }
            }
        };
        let bytes = said(stream, &plan.ask);
        act(tx, rx, bytes, plan.ask, plan.ask_resets).await
    }
}

type Answers = tokio::sync::mpsc::UnboundedSender<(usize, Got)>;

fn serve_stream(tx: Tx, rx: Rx, port: u16, plans: &Rc<Vec<Plan>>, answers: &Answers) {
    let stream = usize::from(port) - 1;
    let plan = plans[stream].clone();
    let answers = answers.clone();
    spawn_local(async move {
        let bytes = said(stream + 100, &plan.answer);
        let got = act(tx, rx, bytes, plan.answer, plan.answer_resets).await;
        answers.send((stream, got)).unwrap();
    });
}

async fn serve_ours(
    io: Chopped,
    peer: Peer,
    settings: Settings,
    plans: Rc<Vec<Plan>>,
    answers: Answers,
) {
    let mut incoming = serve(io, peer, &settings, std::future::pending())
        .await
        .unwrap();
    while let Some(exchange) = incoming.next().await {
        let exchange = exchange.unwrap();
        let port = exchange.request().authority.port();
        if !plans[usize::from(port) - 1].accepted {
            exchange.refuse(StatusCode::SERVICE_UNAVAILABLE);
            continue;
        }
        let (source, sink) = exchange.accept(HeaderMap::new()).unwrap().split();
        serve_stream(Tx::Ours(sink), Rx::Ours(source), port, &plans, &answers);
    }
    // A client that hangs up may be gone before it heard all that is said to it.
    assert!(
        matches!(incoming.ended(), None | Some(TunnelError::Io { .. })),
        "{:?}",
        incoming.ended()
    );
}

async fn serve_theirs(io: Chopped, window: u32, plans: Rc<Vec<Plan>>, answers: Answers) {
    let mut connection = h2::server::Builder::new()
        .initial_window_size(window)
        .data_frame_budget(usize::MAX / 4)
        .handshake::<_, Bytes>(io)
        .await
        .unwrap();
    while let Some(accepted) = connection.accept().await {
        // As above: nothing that matters can be missing any more.
        let Ok((request, mut respond)) = accepted else {
            break;
        };
        let port = request.uri().port_u16().unwrap();
        let mut answer = Response::new(());
        if !plans[usize::from(port) - 1].accepted {
            *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            respond.send_response(answer, true).unwrap();
            continue;
        }
        let tx = Tx::Theirs(respond.send_response(answer, false).unwrap());
        serve_stream(tx, Rx::Theirs(request.into_body()), port, &plans, &answers);
    }
}

/// Runs a schedule; answers what the clients and the servers of the streams got.
async fn run(
    peer: Peer,
    (client, server): (Whose, Whose),
    shape: &Shape,
    plans: &[Plan],
) -> (Vec<Got>, Vec<Got>) {
    let (near, far) = tokio::io::duplex(shape.pipe);
    let (near, far) = (
        Chopped::new(near, shape.step),
        Chopped::new(far, shape.step),
    );
    let settings = |stream_window| Settings {
        stream_window,
        ..Settings::default()
    };
    let plans = Rc::new(plans.to_vec());
    let (answers, mut answered) = tokio::sync::mpsc::unbounded_channel();
    let serving = match server {
        Whose::Ours => spawn_local(serve_ours(
            far,
            peer.clone(),
            settings(shape.server_window),
            Rc::clone(&plans),
            answers,
        )),
        Whose::Theirs => spawn_local(serve_theirs(
            far,
            shape.server_window,
            Rc::clone(&plans),
            answers,
        )),
    };
    let (open, driving): (Box<dyn Fn() -> Client>, _) = match client {
        Whose::Ours => {
            let settings = settings(shape.client_window);
            let (tunnel, driver) = handshake(near, peer, &settings).await.unwrap();
            let driving = spawn_local(async move { driver.await.unwrap() });
            (Box::new(move || Client::Ours(tunnel.clone())), driving)
        }
        Whose::Theirs => {
            let (send, connection) = h2::client::Builder::new()
                .initial_window_size(shape.client_window)
                .data_frame_budget(usize::MAX / 4)
                .handshake::<_, Bytes>(near)
                .await
                .unwrap();
            let driving = spawn_local(async move { connection.await.unwrap() });
            (Box::new(move || Client::Theirs(send.clone())), driving)
        }
    };
    let clients: Vec<_> = plans
        .iter()
        .enumerate()
        .map(|(stream, plan)| spawn_local(open().run(stream, plan.clone())))
        .collect();
    let mut at_client = Vec::new();
    for client in clients {
        at_client.push(client.await.unwrap());
    }
    // The client hangs up when both sides have all: else what it left on the way may be lost with the connection, at either engine.
    let mut at_server = vec![Got::default(); plans.len()];
    for _ in plans.iter().filter(|plan| plan.accepted) {
        let (stream, got) = answered.recv().await.unwrap();
        at_server[stream] = got;
    }
    drop(open);
    // Without streams and handles both ends come to their end, in order.
    driving.await.unwrap();
    serving.await.unwrap();
    (at_client, at_server)
}

fn plan() -> impl Strategy<Value = Plan> {
    let piece = prop_oneof![1..20usize, 1..3000usize, 1..70_000usize];
    let pieces = || collection::vec(piece.clone(), 0..6);
    let seldom = || proptest::bool::weighted(0.15);
    let accepted = proptest::bool::weighted(0.9);
    (accepted, pieces(), seldom(), pieces(), seldom()).prop_map(
        |(accepted, ask, ask_resets, answer, answer_resets)| Plan {
            accepted,
            ask,
            ask_resets,
            answer,
            answer_resets,
        },
    )
}

fn shape() -> impl Strategy<Value = Shape> {
    let window = prop_oneof![Just(3000u32), Just(65_535), Just(1 << 20)];
    let pipe = prop_oneof![64..5000usize, Just(65_536)];
    let step = prop_oneof![1..100usize, 1..20_000usize, Just(1 << 20)];
    (pipe, step, window.clone(), window, any::<bool>()).prop_map(
        |(pipe, step, client_window, server_window, _)| Shape {
            pipe,
            step,
            client_window,
            server_window,
        },
    )
}

/// Whether a side that sent `sent`, and maybe reset the stream, could bring about what the other side got.
fn fits(got: &Got, sent: &[u8], sender_resets: bool, receiver_resets: bool) -> bool {
    let whole = got.bytes == sent && got.end == Some(End::Whole);
    let broken = sent.starts_with(&got.bytes) && got.end == Some(End::Reset);
    match (sender_resets, receiver_resets) {
        (false, false) => whole,
        (true, _) => broken,
        (false, true) => whole || broken,
    }
}

#[test]
fn every_schedule_comes_to_the_same_with_another_engine_at_either_end() {
    let mut runner = TestRunner::new(Config {
        max_shrink_iters: 200,
        ..Config::with_cases(40)
    });
    let schedules = (shape(), collection::vec(plan(), 1..8));
    let outcome = runner.run(&schedules, |(shape, plans)| {
        use Whose::{Ours, Theirs};
        for ends in [(Ours, Theirs), (Theirs, Ours), (Ours, Ours)] {
            let (clients, servers) = live(async |peer| {
                let running = run(peer, ends, &shape, &plans);
                let most = std::time::Duration::from_secs(60);
                tokio::time::timeout(most, running).await.unwrap()
            });
            for (stream, plan) in plans.iter().enumerate() {
                let (client, server) = (&clients[stream], &servers[stream]);
                if !plan.accepted {
                    prop_assert_eq!(client.status, 503, "{:?}", ends);
                    continue;
                }
                // A server that resets at once may take its answer back.
                if client.status == 0 {
                    prop_assert!(plan.answer_resets, "{:?} {}", ends, stream);
                    continue;
                }
                let asked = said(stream, &plan.ask);
                let answered = said(stream + 100, &plan.answer);
                let (ask, answer) = (plan.ask_resets, plan.answer_resets);
                prop_assert!(
                    fits(client, &answered, answer, ask),
                    "client {:?} {}: {:?}",
                    ends,
                    stream,
                    client.end
                );
                prop_assert!(
                    fits(server, &asked, ask, answer),
                    "server {:?} {}: {:?}",
                    ends,
                    stream,
                    server.end
                );
            }
        }
        Ok(())
    });
    outcome.unwrap();
}
