//! Conversations with the agent, as tables and as any order of messages.

use proptest::prelude::{Just, Strategy, prop_oneof, proptest};

use super::{Action, Message, PodInfo, Reconcile, Violation, Wanted};

fn pod(uid: &str, netns: u32) -> Wanted<u32> {
    let info = PodInfo {
        name: uid.to_owned(),
        namespace: "shop".to_owned(),
        service_account: "sa".to_owned(),
    };
    Wanted {
        uid: uid.to_owned(),
        info,
        netns,
    }
}

fn stop(uid: &str) -> Action<u32> {
    Action::Stop(uid.to_owned())
}

/// Takes a message and lets every start succeed.
fn take(state: &mut Reconcile<u32>, message: Message<u32>) -> Vec<Action<u32>> {
    let actions = state.message(message).unwrap();
    for action in &actions {
        if let Action::Start(wanted) = action {
            state.started(wanted.clone());
        }
    }
    actions
}

fn live(pods: &[(&str, u32)]) -> Reconcile<u32> {
    let mut state = Reconcile::default();
    state.connected();
    for (uid, netns) in pods {
        take(&mut state, Message::Add(pod(uid, *netns)));
    }
    take(&mut state, Message::SnapshotSent);
    state
}

#[test]
fn is_ready_after_the_snapshot_and_not_without_an_agent() {
    let mut state = Reconcile::default();
    assert!(!state.ready());
    state.connected();
    take(&mut state, Message::Add(pod("a", 1)));
    assert!(!state.ready());
    take(&mut state, Message::SnapshotSent);
    assert!(state.ready());
    state.disconnected();
    assert!(!state.ready());
    assert!(state.runs("a"), "traffic does not depend on the agent");
}

#[test]
fn starts_a_pod_once_for_one_namespace() {
    let mut state = live(&[("a", 1)]);
    assert_eq!(take(&mut state, Message::Add(pod("a", 1))), []);
    assert_eq!(
        take(&mut state, Message::Add(pod("a", 2))),
        [stop("a"), Action::Start(pod("a", 2))]
    );
    assert_eq!(state.running(), 1);
}

#[test]
fn a_failed_start_stays_wanted_until_it_succeeds_or_is_taken_back() {
    let mut state = live(&[]);
    state.message(Message::Add(pod("a", 1))).unwrap();
    state.failed(pod("a", 1));
    assert!(state.ready(), "one pod's trouble is not the node's");
    assert_eq!(state.retries(), [pod("a", 1)]);
    assert_eq!(
        take(&mut state, Message::Add(pod("a", 2))),
        [Action::Start(pod("a", 2))]
    );
    assert!(
        state.retries().is_empty(),
        "the stale namespace is not tried again"
    );
    state.message(Message::Add(pod("b", 1))).unwrap();
    state.failed(pod("b", 1));
    assert_eq!(take(&mut state, Message::Del("b".to_owned())), []);
    assert!(state.retries().is_empty());
}

#[test]
fn a_pod_pending_at_the_snapshot_keeps_the_node_unready() {
    let mut state = Reconcile::default();
    state.connected();
    state.message(Message::Add(pod("a", 1))).unwrap();
    state.failed(pod("a", 1));
    take(&mut state, Message::SnapshotSent);
    assert!(!state.ready());
    state.started(pod("a", 1));
    assert!(state.ready());
}

#[test]
fn the_end_of_a_snapshot_stops_what_it_did_not_name() {
    let mut state = live(&[("a", 1), ("b", 2), ("c", 3), ("d", 4)]);
    state.disconnected();
    state.connected();
    assert_eq!(take(&mut state, Message::Add(pod("a", 1))), []);
    assert_eq!(take(&mut state, Message::Keep("b".to_owned())), []);
    assert_eq!(take(&mut state, Message::Keep("c".to_owned())), []);
    assert_eq!(take(&mut state, Message::Del("c".to_owned())), []);
    assert_eq!(
        take(&mut state, Message::SnapshotSent),
        [stop("c"), stop("d")]
    );
    assert_eq!(state.running(), 2);
}

#[test]
fn a_del_after_the_snapshot_stops_at_once_and_an_unknown_one_does_nothing() {
    let mut state = live(&[("a", 1)]);
    assert_eq!(take(&mut state, Message::Del("a".to_owned())), [stop("a")]);
    assert_eq!(take(&mut state, Message::Del("a".to_owned())), []);
}

#[test]
fn names_what_breaks_the_rules() {
    let mut state = live(&[]);
    assert_eq!(
        state.message(Message::Keep("a".into())),
        Err(Violation::KeepAfterSnapshot)
    );
    assert_eq!(
        state.message(Message::SnapshotSent),
        Err(Violation::SecondSnapshot)
    );
}

fn any_message() -> impl Strategy<Value = Option<Message<u32>>> {
    let uid = prop_oneof![Just("a"), Just("b"), Just("c")];
    prop_oneof![
        (uid.clone(), 0u32..3).prop_map(|(uid, n)| Some(Message::Add(pod(uid, n)))),
        uid.clone()
            .prop_map(|uid| Some(Message::Keep(uid.to_owned()))),
        uid.prop_map(|uid| Some(Message::Del(uid.to_owned()))),
        Just(Some(Message::SnapshotSent)),
        // A new conversation.
        Just(None),
    ]
}

proptest! {
    /// Doing what the actions say leaves exactly the pods that the state believes in, each in the
    /// namespace it was last added with.
    #[test]
    fn actions_and_belief_never_part(
        script in proptest::collection::vec((any_message(), proptest::bool::ANY), 0..60),
    ) {
        let mut state = Reconcile::default();
        let mut world = std::collections::BTreeMap::new();
        for (message, succeeds) in script {
            let Some(message) = message else {
                state.connected();
                continue;
            };
            for action in state.message(message).unwrap_or_default() {
                match action {
                    Action::Stop(uid) => {
                        proptest::prop_assert!(world.remove(&uid).is_some());
                    }
                    Action::Start(wanted) if succeeds => {
                        let before = world.insert(wanted.uid.clone(), wanted.netns);
                        proptest::prop_assert_eq!(before, None);
                        state.started(wanted);
                    }
                    Action::Start(wanted) => state.failed(wanted),
                }
            }
            proptest::prop_assert_eq!(&state.running, &world);
            for wanted in state.pending() {
                proptest::prop_assert!(!world.contains_key(&wanted.uid));
            }
        }
    }
}
