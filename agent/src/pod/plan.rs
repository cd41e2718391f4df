//! The next step for one pod: a pure function of what is in force and what is wanted.
//!
//! # In
//! Announced last, after the rules are in force and the proxy accepted. Which of these two comes first depends:
//!
//! * A pod that is wanted from the first sight of it (it is new, or the agent was away): **rules first**. Until the proxy is there its
//!   connections are refused, so it never speaks past the mesh.
//! * A pod that was seen outside the mesh and is opted in while it runs: **proxy first**. Its listeners are there before the first
//!   connection is redirected, so none fails. Until then the pod speaks plaintext, as it did before, and nobody was told otherwise.
//!
//! # Out
//! The reverse, and slowly: the announcement is withdrawn, and only when the other proxies have had time to hear of it does redirection
//! end; then connections that were redirected have time to end, as long as there are any; then the proxy drops the pod; then the rest of the rules goes. New
//! connections reach the application at every moment: over HBONE, through the plaintext port, or directly.
//!
//! A pod that is gone needs none of this patience.

/// What the pod should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// In the mesh.
    In,
    /// Not in the mesh.
    Out,
    /// No longer there.
    Gone,
}

/// Which rules are in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InForce {
    /// None.
    Nothing,
    /// New connections are redirected.
    Capture,
    /// Only connections that were redirected before are.
    Drain,
}

/// What others were told about the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announced {
    /// Nothing: it is reached in plaintext.
    Nothing,
    /// It will be in the mesh; it is reached in plaintext.
    Pending,
    /// It is reached over HBONE.
    Enabled,
}

/// Which comes first when a pod goes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The rules.
    RulesFirst,
    /// The proxy.
    ProxyFirst,
}

/// What is known about the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The rules in its namespace.
    pub rules: InForce,
    /// Whether the proxy serves it.
    pub served: bool,
    /// What others were told.
    pub announced: Announced,
    /// Whether others have had time to hear that it is no longer announced.
    pub settled: bool,
    /// Whether redirected connections have had time to end.
    pub drained: bool,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            rules: InForce::Nothing,
            served: false,
            announced: Announced::Nothing,
            settled: true,
            drained: true,
        }
    }
}

/// One thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing is left to do.
    Rest,
    /// Put the rules in force.
    Capture,
    /// Have the proxy serve the pod.
    Serve,
    /// Say that the pod is reached over HBONE.
    Announce,
    /// Take back what was said.
    Withdraw,
    /// Give others the time to hear it.
    Settle,
    /// Redirect no new connections.
    Drain,
    /// Wait until no connection is redirected any more, or their time is over.
    WaitForEnd,
    /// Have the proxies drop the pod.
    Release,
    /// Remove all rules.
    Remove,
}

/// The next step.
#[must_use]
pub fn next(facts: &Facts, want: Want, order: Order) -> Step {
    match want {
        Want::In => inwards(facts, order),
        Want::Out | Want::Gone => outwards(facts, want == Want::Gone),
    }
}

fn inwards(facts: &Facts, order: Order) -> Step {
    let captured = facts.rules == InForce::Capture;
    match order {
        Order::RulesFirst if !captured => Step::Capture,
        _ if !facts.served => Step::Serve,
        _ if !captured => Step::Capture,
        _ if facts.announced != Announced::Enabled => Step::Announce,
        _ => Step::Rest,
    }
}

fn outwards(facts: &Facts, gone: bool) -> Step {
    if facts.announced != Announced::Nothing {
        Step::Withdraw
    } else if !facts.settled && !gone {
        Step::Settle
    } else if facts.rules == InForce::Capture && !gone {
        Step::Drain
    } else if !facts.drained && !gone {
        Step::WaitForEnd
    } else if gone && facts.rules != InForce::Nothing {
        Step::Remove
    } else if facts.served {
        Step::Release
    } else if facts.rules != InForce::Nothing {
        Step::Remove
    } else {
        Step::Rest
    }
}

impl Facts {
    /// What is known after a step succeeded.
    #[must_use]
    pub const fn after(self, step: Step) -> Self {
        match step {
            Step::Rest => self,
            Step::Capture => Self {
                rules: InForce::Capture,
                drained: false,
                ..self
            },
            Step::Serve => Self {
                served: true,
                ..self
            },
            Step::Announce => Self {
                announced: Announced::Enabled,
                settled: false,
                ..self
            },
            Step::Withdraw => Self {
                announced: Announced::Nothing,
                ..self
            },
            Step::Settle => Self {
                settled: true,
                ..self
            },
            Step::Drain => Self {
                rules: InForce::Drain,
                ..self
            },
            Step::WaitForEnd => Self {
                drained: true,
                ..self
            },
            Step::Release => Self {
                served: false,
                ..self
            },
            Step::Remove => Self {
                rules: InForce::Nothing,
                drained: true,
                ..self
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Announced, Facts, InForce, Order, Step, Want, next};
    use proptest::prelude::{Just, Strategy, prop_assert, prop_oneof, proptest};

    fn all(mut facts: Facts, want: Want, order: Order) -> (Vec<Step>, Facts) {
        let mut steps = Vec::new();
        loop {
            match next(&facts, want, order) {
                Step::Rest => return (steps, facts),
                step => {
                    steps.push(step);
                    facts = facts.after(step);
                }
            }
            assert!(steps.len() < 20, "no end: {steps:?}");
        }
    }

    #[test]
    fn a_pod_that_runs_outside_is_served_before_its_connections_are_redirected() {
        let (steps, _) = all(Facts::default(), Want::In, Order::ProxyFirst);
        assert_eq!(steps, [Step::Serve, Step::Capture, Step::Announce]);
    }

    #[test]
    fn a_new_pod_is_cut_off_before_it_is_served() {
        let (steps, _) = all(Facts::default(), Want::In, Order::RulesFirst);
        assert_eq!(steps, [Step::Capture, Step::Serve, Step::Announce]);
    }

    #[test]
    fn a_pod_leaves_in_the_reverse_order_with_time_in_between() {
        let (_, facts) = all(Facts::default(), Want::In, Order::ProxyFirst);
        let (steps, facts) = all(facts, Want::Out, Order::ProxyFirst);
        use Step::{Drain, Release, Remove, Settle, WaitForEnd, Withdraw};
        assert_eq!(
            steps,
            [Withdraw, Settle, Drain, WaitForEnd, Release, Remove]
        );
        assert_eq!(facts, Facts::default());
    }

    #[test]
    fn a_pod_that_is_gone_is_cleaned_up_at_once() {
        let (_, facts) = all(Facts::default(), Want::In, Order::ProxyFirst);
        let (steps, _) = all(facts, Want::Gone, Order::ProxyFirst);
        assert_eq!(steps, [Step::Withdraw, Step::Remove, Step::Release]);
    }

    #[test]
    fn after_a_restart_an_announced_pod_is_only_served_again() {
        let (_, facts) = all(Facts::default(), Want::In, Order::RulesFirst);
        let (steps, _) = all(
            Facts {
                served: false,
                ..facts
            },
            Want::In,
            Order::RulesFirst,
        );
        assert_eq!(steps, [Step::Serve]);
    }

    fn wants() -> impl Strategy<Value = Want> {
        prop_oneof![Just(Want::In), Just(Want::Out), Just(Want::Gone)]
    }

    proptest! {
        /// However often the wish changes half way.
        #[test]
        fn announced_always_means_redirected_and_served(
            wishes in proptest::collection::vec((wants(), 0_usize..4), 1..20),
            rules_first in proptest::bool::ANY,
        ) {
            let order = if rules_first { Order::RulesFirst } else { Order::ProxyFirst };
            let mut facts = Facts::default();
            for (want, steps) in wishes {
                for _ in 0..steps {
                    facts = facts.after(next(&facts, want, order));
                    if facts.announced == Announced::Enabled {
                        prop_assert!(facts.rules == InForce::Capture && facts.served);
                    }
                    if order == Order::ProxyFirst && facts.rules == InForce::Capture {
                        prop_assert!(facts.served, "redirected to nobody");
                    }
                }
            }
            let (_, facts) = all(facts, Want::Out, order);
            prop_assert!(facts == Facts::default(), "something is left: {facts:?}");
        }
    }
}
