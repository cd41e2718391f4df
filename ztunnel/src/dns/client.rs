//! One pod on the DNS thread: what becomes of each of its queries.
//!
//! 1. Read it; what is no query is told so.
//! 2. Whose is it: the pod's own record, waited for where it is not known yet.
//! 3. Is it for addresses of a service of the mesh: answer.
//! 4. Was the same asked lately: answer from the cache.
//! 5. Ask the pod's servers.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ambit_dns::Transport;
use ambit_dns::answer;
use ambit_dns::cache::Place;
use ambit_dns::lookup::Scope;
use ambit_dns::query::Query;
use ambit_dns::reply;
use ambit_dns::walk::kind;
use ambit_model::workload::Workload;
use ambit_observe::metrics::Handle;
use hickory_resolver::proto::op::ResponseCode;
use tokio::time::Instant;

use crate::busy::{Busy, Work};
use crate::dns::metrics::{self, Outcome, Requests};
use crate::dns::places::{self, Conf, Watched};
use crate::dns::{InFlight, Resolver, upstream};
use crate::pod::Pod;

/// How long a query waits for its own pod to become known. Less than a resolver's patience, so that it hears the
/// failure and asks again.
pub const UNKNOWN: Duration = Duration::from_secs(2);

/// Queries of one pod that wait for others. A pod that resolves for a living has a few dozen.
const IN_FLIGHT: u32 = 256;

/// Whom a pod asks, and where its answers are kept.
#[derive(Debug)]
pub struct Servers {
    /// In the order of the file.
    pub addresses: Vec<IpAddr>,
    /// Which of them is asked first: the one that answered last.
    pub first: Cell<usize>,
    /// Search domains of the pod, where they are known.
    search: Option<Vec<String>>,
    place: Place,
    /// What it was made of.
    own: Rc<Conf>,
    given: Option<Rc<Conf>>,
}

/// What is to be said to a query.
pub enum Reply {
    /// This.
    Now(Vec<u8>),
    /// What comes of this.
    Later(Pin<Box<dyn Future<Output = Vec<u8>>>>),
    /// Nothing: it was no DNS message.
    Nothing,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now",
            Self::Later(_) => "Later",
            Self::Nothing => "Nothing",
        })
    }
}

/// A pod.
#[derive(Debug)]
pub struct Client {
    /// The thread.
    pub resolver: Rc<Resolver>,
    /// The pod.
    pub pod: Arc<Pod>,
    /// Queries and connections at work.
    pub busy: Busy,
    /// TCP connections open.
    pub streams: Cell<u32>,
    in_flight: Cell<u32>,
    file: OnceCell<Option<Watched>>,
    servers: RefCell<Option<Rc<Servers>>>,
    /// Counters used lately, and for which record of the pod.
    counters: RefCell<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    source: Option<Arc<Workload>>,
    /// By type's name and transport: a few at most.
    handles: Vec<(&'static str, Transport, Handle<Requests>)>,
}

/// One query of a pod that waits.
struct Waiting {
    client: Rc<Client>,
    _node: InFlight,
    _busy: Work,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let count = &self.client.in_flight;
        count.set(count.get().saturating_sub(1));
    }
}

impl Client {
    /// A pod that has asked nothing yet.
    #[must_use]
    pub fn new(resolver: &Rc<Resolver>, pod: Arc<Pod>) -> Self {
        Self {
            resolver: Rc::clone(resolver),
            pod,
            busy: Busy::default(),
            streams: Cell::new(0),
            in_flight: Cell::new(0),
            file: OnceCell::new(),
            servers: RefCell::default(),
            counters: RefCell::default(),
        }
    }

    /// Takes a message of the pod's.
    pub fn take(self: &Rc<Self>, bytes: &[u8], transport: Transport) -> Reply {
        let query = match Query::read(bytes) {
            Ok(query) => query,
            Err(fault) => return fault.answer(bytes).map_or(Reply::Nothing, Reply::Now),
        };
        let source = self.source();
        if let Some(source) = &source
            && let Some(answer) = self.at_once(&query, transport, source)
        {
            return Reply::Now(answer);
        }
        let Some(waiting) = self.begin() else {
            self.log(&query, source.as_ref(), "too many in flight");
            return Reply::Now(query.refuse(ResponseCode::ServFail));
        };
        let bytes = bytes.to_vec();
        Reply::Later(Box::pin(async move {
            waiting.client.later(source, bytes, transport).await
        }))
    }

    /// The pod's record now.
    fn source(&self) -> Option<Arc<Workload>> {
        let shared = &self.resolver.shared;
        shared.store.read(|view| {
            let found = self.pod.find(view, &shared.settings.local_node);
            found.cloned()
        })
    }

    fn begin(self: &Rc<Self>) -> Option<Waiting> {
        let before = self.in_flight.get();
        if before >= IN_FLIGHT {
            return None;
        }
        let node = self.resolver.begin()?;
        self.in_flight.set(before + 1);
        Some(Waiting {
            client: Rc::clone(self),
            _node: node,
            _busy: self.busy.begin(),
        })
    }

    /// The rest of [`take`](Self::take) for what has to wait.
    async fn later(
        &self,
        source: Option<Arc<Workload>>,
        bytes: Vec<u8>,
        transport: Transport,
    ) -> Vec<u8> {
        let Ok(query) = Query::read(&bytes) else {
            return Vec::new();
        };
        let source = match source {
            Some(source) => source,
            None => {
                let Some(source) = self.source_later().await else {
                    self.log(&query, None, "unknown source");
                    return query.refuse(ResponseCode::ServFail);
                };
                if let Some(answer) = self.at_once(&query, transport, &source) {
                    return answer;
                }
                source
            }
        };
        let answer = self.ask_others(&query, transport, &source).await;
        let result = if answer.is_some() {
            "forwarded"
        } else {
            "no answer"
        };
        self.log(&query, Some(&source), result);
        answer.unwrap_or_else(|| query.refuse(ResponseCode::ServFail))
    }

    async fn source_later(&self) -> Option<Arc<Workload>> {
        let shared = &self.resolver.shared;
        let node = &shared.settings.local_node;
        let find = |view: &_| self.pod.find(view, node).cloned();
        shared.store.wait_for(UNKNOWN, find).await
    }

    /// The answer that needs nobody else, if there is one. Counts the query.
    fn at_once(
        &self,
        query: &Query<'_>,
        transport: Transport,
        source: &Arc<Workload>,
    ) -> Option<Vec<u8>> {
        self.count(query, transport, source);
        if matches!(query.kind(), kind::AXFR | kind::IXFR) {
            // A transfer is many messages, and no server of a cluster permits it to a pod.
            self.log(query, Some(source), "refused");
            return Some(query.refuse(ResponseCode::Refused));
        }
        let servers = self.servers();
        if let Some(answer) = self.of_the_mesh(query, transport, source, &servers) {
            return Some(answer);
        }
        let resolver = &self.resolver;
        let mut cache = resolver.cache.borrow_mut();
        let kept = cache.get(servers.place, query, resolver.now())?;
        self.log(query, Some(source), "from the cache");
        Some(reply::fit(kept, query.limit(transport)))
    }

    fn of_the_mesh(
        &self,
        query: &Query<'_>,
        transport: Transport,
        source: &Arc<Workload>,
        servers: &Servers,
    ) -> Option<Vec<u8>> {
        let shared = &self.resolver.shared;
        let scope = Scope {
            namespace: &self.pod.info.namespace,
            network: &source.network,
            domain: &shared.settings.cluster_domain,
            search: servers.search.as_deref(),
            preferred_namespace: &shared.settings.preferred_service_namespace,
            ipv6: shared.settings.ipv6_enabled,
        };
        let mut random = || fastrand::u64(..);
        shared.store.read(|view| {
            let answer = answer::answer(view, &scope, query, transport, &mut random)?;
            let outcome = Outcome {
                result: if answer.addresses > 0 {
                    "success"
                } else {
                    "no records"
                },
                service: &answer.service.key.hostname,
                endpoints: answer.addresses,
            };
            metrics::log(query, Some(source), &outcome);
            Some(answer.bytes)
        })
    }

    /// What a server of the pod's says, as much of it as fits; `None` when none answers.
    async fn ask_others(
        &self,
        query: &Query<'_>,
        transport: Transport,
        source: &Arc<Workload>,
    ) -> Option<Vec<u8>> {
        let servers = self.servers();
        let families = &self.resolver.shared.metrics.dns;
        let counters = families
            .upstream
            .resolve(|labels| metrics::write(labels, query.kind(), transport, Some(source)));
        counters.requests.inc();
        let begun = Instant::now();
        let said = Box::pin(upstream::ask(self, &servers, query, transport)).await;
        let Some(mut said) = said else {
            counters.failures.inc();
            return None;
        };
        counters.duration.observe(begun.elapsed().as_secs_f64());
        let resolver = &self.resolver;
        let keep = said.whole.as_deref().unwrap_or(&said.answer);
        resolver
            .cache
            .borrow_mut()
            .put(servers.place, query, keep, resolver.now());
        let limit = query.limit(transport);
        if let Some(whole) = said.whole.take()
            && whole.len() <= limit
        {
            said.answer = whole;
        }
        reply::address_to(query, &mut said.answer);
        Some(reply::fit(said.answer, limit))
    }

    /// Whom the pod asks now.
    fn servers(&self) -> Rc<Servers> {
        let own = self.resolver.own.now();
        let file = self
            .file
            .get_or_init(|| match self.resolver.shared.settings.only() {
                None => places::of_namespace(self.pod.netns.id()),
                // The proxy's file is the workload's.
                Some(_) => Some(Watched::new(places::OWN.into())),
            });
        let given = file.as_ref().map(Watched::now);
        let given = given.filter(|conf| !conf.servers.is_empty());
        let mut kept = self.servers.borrow_mut();
        if let Some(servers) = &*kept
            && Rc::ptr_eq(&servers.own, &own)
            && same(servers.given.as_ref(), given.as_ref())
        {
            return Rc::clone(servers);
        }
        let from = given.as_ref().unwrap_or(&own);
        let servers = Rc::new(Servers {
            addresses: from.servers.clone(),
            first: Cell::new(0),
            search: given.as_ref().map(|given| given.search.clone()),
            place: self.resolver.new_place(),
            given,
            own,
        });
        *kept = Some(Rc::clone(&servers));
        servers
    }

    fn count(&self, query: &Query<'_>, transport: Transport, source: &Arc<Workload>) {
        let kind = metrics::mnemonic(query.kind());
        let mut counters = self.counters.borrow_mut();
        if !same(counters.source.as_ref(), Some(source)) {
            counters.handles.clear();
            counters.source = Some(Arc::clone(source));
        }
        let mut known = counters.handles.iter();
        if let Some((.., handle)) = known.find(|(a, b, _)| (*a, *b) == (kind, transport)) {
            handle.requests.inc();
            return;
        }
        let families = &self.resolver.shared.metrics.dns;
        let handle = families
            .requests
            .resolve(|labels| metrics::write(labels, query.kind(), transport, Some(source)));
        handle.requests.inc();
        counters.handles.push((kind, transport, handle));
    }

    fn log(&self, query: &Query<'_>, source: Option<&Arc<Workload>>, result: &str) {
        let outcome = Outcome {
            result,
            ..Outcome::default()
        };
        metrics::log(query, source.map(|source| &**source), &outcome);
    }
}

fn same<T>(a: Option<&T>, b: Option<&T>) -> bool
where
    T: std::ops::Deref,
{
    match (a, b) {
        (Some(a), Some(b)) => std::ptr::eq::<T::Target>(&**a, &**b),
        (None, None) => true,
        _ => false,
    }
}
