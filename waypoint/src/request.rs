//! One request, from its first header byte to its one log record. Read this first.
//!
//! # Steps
//! One function is these steps, top to bottom; each is a function of its own here or in the module
//! named. Whatever a step returns early with is an answer of `respond.rs`, and steps 12 and 13
//! happen for every request, whichever step ended it.
//!
//! 1. `read`: request line and headers as hyper gave them. Refuse what is ambiguous before anything
//!    else looks at it: conflicting lengths, two hosts, bad names.
//! 2. `canonical`: one form of method, host and path, which everything after this sees and which goes
//!    upstream; drop hop-by-hop and untrusted headers, set `x-forwarded-proto`, `x-request-id`.
//! 3. `subject`: borrow a [`crate::subject::Subject`] from the canonical request and its connection.
//! 4. `route`: [`crate::routes::RouteTable::find`] of the chain in the plan loaded for this request.
//!    None: 404, flag `NR`.
//! 5. `filters`: [`crate::plan::HttpChain::filters`] in order; [`crate::rules::Rules::check`] answers
//!    403. Filters run also when there is no route, so that a refused request learns nothing.
//! 6. `act`: redirect and direct response answer here.
//! 7. `destination`: by weight ([`crate::routes::Forward::choose`]); its cluster from the plan. None:
//!    503 (or 500), flag `NC`.
//! 8. `rewrite`: path and host; then header changes of destination, route, host, table.
//! 9. `attempt` ([`crate::routes::RetryPolicy`]): choose an endpoint, connect (HBONE or plain), send,
//!    wait for response headers, within the deadline; maybe again.
//! 10. `upgrade`: websocket, once both ends agreed.
//! 11. `respond`: response header changes, `server`, `x-envoy-upstream-service-time`; then stream the
//!     body.
//! 12. `count`: metrics, once, when the stream has ended.
//! 13. `log`: one access-log record, once, when the stream has ended.
