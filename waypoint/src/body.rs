//! Bodies on their way through: streamed, counted, never collected.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::record::{Flag, Record};
use crate::upstream::Sender;

/// How far a request's body is; shared by the body and whoever waits for the answer.
#[derive(Debug, Default)]
pub struct Progress {
    bytes: Cell<u64>,
    ended: Cell<Option<Instant>>,
}

impl Progress {
    /// Body bytes read from the client so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Counts bytes that did not come as a body.
    pub fn add(&self, bytes: u64) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// When the body ended, if it did.
    #[must_use]
    pub fn ended(&self) -> Option<Instant> {
        self.ended.get()
    }

    /// There is nothing more to come.
    pub fn end(&self) {
        if self.ended.get().is_none() {
            self.ended.set(Some(Instant::now()));
        }
    }
}

/// The body of a request that goes upstream.
#[derive(Debug)]
pub struct RequestBody {
    incoming: Option<Incoming>,
    progress: Rc<Progress>,
}

impl RequestBody {
    /// What the client sends.
    #[must_use]
    pub fn new(incoming: Incoming, progress: Rc<Progress>) -> Self {
        if incoming.is_end_stream() {
            progress.end();
            return Self {
                incoming: None,
                progress,
            };
        }
        Self {
            incoming: Some(incoming),
            progress,
        }
    }

    /// No body.
    #[must_use]
    pub fn empty() -> Self {
        let progress = Rc::new(Progress::default());
        progress.end();
        Self {
            incoming: None,
            progress,
        }
    }

    /// Whether there was none from the beginning: then a request can be sent any number of times.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.incoming.is_none()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let Some(incoming) = &mut this.incoming else {
            return Poll::Ready(None);
        };
        let frame = std::task::ready!(Pin::new(incoming).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                this.progress.bytes.set(this.progress.bytes.get() + length);
            }
            Some(Err(_)) => {}
            None => this.progress.end(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let ended = self.incoming.as_ref().is_none_or(Body::is_end_stream);
        if ended {
            self.progress.end();
        }
        ended
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// The body of an answer. Its end, whatever kind of end, is the end of the request: the record is
/// written when it is dropped.
#[derive(Debug)]
pub struct ResponseBody {
    content: Content,
    /// Ends the body when it fires: the route's timeout covers the whole answer.
    deadline: Option<Pin<Box<Sleep>>>,
    record: Option<Box<Record>>,
}

#[derive(Debug)]
enum Content {
    Local(Bytes),
    Upstream {
        incoming: Incoming,
        sender: Option<Sender>,
    },
}

/// Why an answer broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The upstream did.
    #[error("upstream broke off")]
    Upstream(#[source] hyper::Error),
    /// The route's timeout ran out.
    #[error("timeout")]
    Timeout,
}

impl ResponseBody {
    /// A whole answer of our own.
    #[must_use]
    pub fn local(text: Bytes, record: Box<Record>) -> Self {
        let mut body = Self {
            content: Content::Local(text),
            deadline: None,
            record: Some(record),
        };
        if body.is_end_stream() {
            body.finished();
        }
        body
    }

    /// No body and no record: the record went elsewhere.
    #[must_use]
    pub fn none() -> Self {
        Self {
            content: Content::Local(Bytes::new()),
            deadline: None,
            record: None,
        }
    }

    /// The head as it goes to the client.
    pub fn responded(&mut self, status: http::StatusCode, headers: &http::HeaderMap) {
        if let Some(record) = &mut self.record {
            record.responded(status, headers);
        }
    }

    /// What an endpoint answers. Its connection is given back at the end of the body.
    #[must_use]
    pub fn upstream(
        incoming: Incoming,
        sender: Option<Sender>,
        deadline: Option<Instant>,
        record: Box<Record>,
    ) -> Self {
        let deadline = if incoming.is_end_stream() {
            None
        } else {
            deadline
        };
        let mut body = Self {
            content: Content::Upstream { incoming, sender },
            deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
            record: Some(record),
        };
        if body.is_end_stream() {
            body.finished();
        }
        body
    }

    /// The answer was read to its end.
    fn finished(&mut self) {
        if let Some(record) = &mut self.record {
            record.complete();
            if let Content::Upstream { sender, .. } = &mut self.content
                && let Some(sender) = sender.take()
            {
                sender.give_back(record.upstreams());
            }
        }
    }

    fn broke(&mut self, flag: Flag, details: &'static str) {
        if let Some(record) = &mut self.record {
            record.flag(flag);
            record.details(details);
            record.complete();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = match &mut this.content {
            Content::Local(text) if text.is_empty() => None,
            Content::Local(text) => Some(Ok(Frame::data(std::mem::take(text)))),
            Content::Upstream { incoming, .. } => match Pin::new(incoming).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    let fired = this
                        .deadline
                        .as_mut()
                        .is_some_and(|sleep| sleep.as_mut().poll(cx).is_ready());
                    if !fired {
                        return Poll::Pending;
                    }
                    this.broke(Flag::UpstreamTimeout, "response_timeout");
                    return Poll::Ready(Some(Err(BodyError::Timeout)));
                }
            },
        };
        match frame {
            None => {
                this.finished();
                Poll::Ready(None)
            }
            Some(Ok(frame)) => {
                if let Some(record) = &mut this.record {
                    record.response_frame(&frame);
                }
                if this.is_end_stream() {
                    this.finished();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                this.broke(
                    Flag::UpstreamTermination,
                    "upstream_reset_after_response_started{connection_termination}",
                );
                Poll::Ready(Some(Err(BodyError::Upstream(error))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Local(text) => text.is_empty(),
            Content::Upstream { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Local(text) => SizeHint::with_exact(text.len() as u64),
            Content::Upstream { incoming, .. } => incoming.size_hint(),
        }
    }
}
