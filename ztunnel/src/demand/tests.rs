//! Who waits for what, and how long.

use std::sync::Arc;
use std::time::Duration;

use ambit_model::reason::Reason;
use ambit_model::update::Change;
use ambit_model::workload::{NetworkMode, Protocol, Workload};
use ambit_observe::metrics::Registry;
use ambit_xds::Answered;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{ABSENT_LIFE, Demand, MOST_ABSENT, MOST_ASKS, PATIENCE};
use crate::store::Store;

fn workload(name: &str, address: &str) -> Workload {
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}");
    let identity = identity.parse().unwrap();
    let mut workload = Workload::new(format!("c//Pod/shop/{name}").into(), name, identity);
    workload.addresses.push(address.parse().unwrap());
    workload.protocol = Protocol::Hbone;
    workload
}

struct World {
    store: Arc<Store>,
    demand: Arc<Demand>,
}

impl World {
    fn new() -> Self {
        let demand = Demand::new(&Registry::default());
        demand.connected(true);
        Self {
            store: Arc::default(),
            demand: Arc::new(demand),
        }
    }

    /// A connection to this address that waits for what it needs.
    fn connection(&self, to: &str) -> JoinHandle<Result<(), Reason>> {
        let (store, demand) = (Arc::clone(&self.store), Arc::clone(&self.demand));
        let to = format!("{to}:80").parse().unwrap();
        tokio::spawn(async move {
            let web = workload("web", "10.0.0.1");
            demand.outbound(&store, "", &web, to).await
        })
    }

    /// Waits until exactly these are asked for.
    async fn asked(&self, names: &[&str]) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let wanted = self.demand.wanted();
        assert!(wanted.iter().eq(names), "{wanted:?}");
    }

    fn answer(&self, name: &str, exists: bool, refused: bool) {
        let name = name.to_owned();
        self.demand.answered(vec![Answered {
            name,
            exists,
            refused,
        }]);
    }
}

#[tokio::test(start_paused = true)]
async fn many_wait_on_one_ask_and_all_go_on_with_its_answer() {
    let world = World::new();
    let waiting: Vec<_> = (0..100).map(|_| world.connection("10.0.0.2")).collect();
    world.asked(&["/10.0.0.2"]).await;
    let cart = Change::UpsertWorkload(workload("cart", "10.0.0.2"));
    world.store.apply([cart]);
    world.answer("/10.0.0.2", true, false);
    for connection in waiting {
        assert_eq!(connection.await.unwrap(), Ok(()));
    }
    world.asked(&[]).await;
    // Known now: nothing is asked for again.
    assert_eq!(world.connection("10.0.0.2").await.unwrap(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn nothing_there_is_believed_of_the_control_plane_and_remembered_for_a_while() {
    let world = World::new();
    let first = world.connection("192.0.2.1");
    world.asked(&["/192.0.2.1"]).await;
    world.answer("/192.0.2.1", false, false);
    assert_eq!(first.await.unwrap(), Ok(()));
    tokio::time::advance(ABSENT_LIFE - Duration::from_millis(1)).await;
    assert_eq!(world.connection("192.0.2.1").await.unwrap(), Ok(()));
    world.asked(&[]).await;
    tokio::time::advance(Duration::from_millis(1)).await;
    let later = world.connection("192.0.2.1");
    world.asked(&["/192.0.2.1"]).await;
    later.abort();
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_a_connection_is_refused_and_not_passed_through() {
    let world = World::new();
    let start = Instant::now();
    let refused = world.connection("192.0.2.1").await.unwrap();
    assert_eq!(refused, Err(Reason::Undiscovered));
    assert_eq!(start.elapsed(), PATIENCE);
    // The ask stays open for the next one, and not for ever.
    world.asked(&["/192.0.2.1"]).await;
    tokio::time::advance(Duration::from_secs(30)).await;
    world.asked(&[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_resource_that_was_refused_refuses_the_connection_at_once() {
    let world = World::new();
    let start = Instant::now();
    let connection = world.connection("10.0.0.2");
    world.asked(&["/10.0.0.2"]).await;
    world.answer("/10.0.0.2", true, true);
    assert_eq!(connection.await.unwrap(), Err(Reason::Undiscovered));
    assert!(start.elapsed() < PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn what_exists_and_is_not_found_by_its_address_is_decided_as_on_a_whole_view() {
    let world = World::new();
    let connection = world.connection("10.0.0.3");
    world.asked(&["/10.0.0.3"]).await;
    // A pod of the host network: the address is its node's, too.
    let mut node = workload("node", "10.0.0.3");
    node.network_mode = NetworkMode::HostNetwork;
    world.store.apply([Change::UpsertWorkload(node)]);
    world.answer("/10.0.0.3", true, false);
    assert_eq!(connection.await.unwrap(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn what_does_not_exist_stands_while_the_control_plane_is_away() {
    let world = World::new();
    let first = world.connection("192.0.2.1");
    world.asked(&["/192.0.2.1"]).await;
    world.answer("/192.0.2.1", false, false);
    assert_eq!(first.await.unwrap(), Ok(()));
    world.demand.connected(false);
    tokio::time::advance(100 * ABSENT_LIFE).await;
    assert_eq!(world.connection("192.0.2.1").await.unwrap(), Ok(()));
    // What it was never asked is refused.
    let refused = world.connection("192.0.2.2").await.unwrap();
    assert_eq!(refused, Err(Reason::Undiscovered));
    world.demand.connected(true);
    let again = world.connection("192.0.2.1").await.unwrap();
    assert_eq!(again, Err(Reason::Undiscovered));
}

#[tokio::test(start_paused = true)]
async fn asks_and_what_does_not_exist_are_bounded() {
    let world = World::new();
    let address = |n: usize| format!("10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255);
    for n in 0..MOST_ASKS {
        world.demand.ask_at("", address(n).parse().unwrap());
    }
    let refused = world.connection("192.0.2.1").await.unwrap();
    assert_eq!(refused, Err(Reason::Overloaded));
    assert_eq!(world.demand.wanted().len(), MOST_ASKS);
    for n in 0..3 * MOST_ABSENT {
        world.answer(&format!("/{}", address(n)), false, false);
    }
    let table = world.demand.table.lock();
    assert!(table.asked.is_empty());
    assert!(table.absent.len() <= MOST_ABSENT);
}
