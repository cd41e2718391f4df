//! Who needs less of what, sidecars or Ambit, and where it cannot be told.

use std::fmt::Write as _;

use super::findings::{Findings, Number, Way, What};
use crate::report::number;

/// Fewer rounds have no spread to tell a difference from chance.
const FEWEST: usize = 3;
/// Less of a difference between medians is none.
const NOTHING: f64 = 0.05;
/// The kernel counts CPU time in hundredths of a second: less of a difference, in cores, cannot be seen.
const CORES_SEEN: f64 = 0.002;
/// What is compared, of whom.
pub(super) const PAIRS: [(&str, Way, Way); 2] = [
    ("L4", Way::SidecarsBytes, Way::Node),
    ("HTTP", Way::SidecarsHttp, Way::Waypoint),
];
/// In which respects.
const RESPECTS: [(What, &str, &str); 6] = [
    (What::IdleShared, "memory idle", "MiB"),
    (What::AfterShared, "memory after load", "MiB"),
    (What::IdleCores, "CPU idle", "cores"),
    (What::Cores, "CPU under load", "cores"),
    (What::Half, "time of a request, p50", "µs"),
    (What::Most, "time of a request, p99", "µs"),
];

/// Who needs less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Sidecars,
    Ambit,
    Neither,
}

/// One comparison, with both medians.
pub(super) struct Compared {
    pair: &'static str,
    respect: &'static str,
    pods: usize,
    sidecars: f64,
    ambit: f64,
    pub(super) verdict: Verdict,
}

/// Everything that can be compared.
pub(super) fn compared(findings: &Findings) -> Vec<Compared> {
    let mut all = Vec::new();
    for (pair, sidecars, ambit) in PAIRS {
        for (what, respect, _) in RESPECTS {
            // A sidecar that idles has not yet met bytes nor requests.
            let of_sidecars = if matches!(what, What::Cores | What::Half | What::Most) {
                sidecars
            } else {
                Way::SidecarsBytes
            };
            for pods in &findings.pods {
                let at = |way| Number {
                    pods: *pods,
                    way,
                    what,
                };
                let (a, b) = (at(of_sidecars), at(ambit));
                if let (Some(sidecars), Some(ambit)) = (findings.median(a), findings.median(b)) {
                    let verdict = verdict(findings, a, b, what);
                    all.push(Compared {
                        pair,
                        respect,
                        pods: *pods,
                        sidecars,
                        ambit,
                        verdict,
                    });
                }
            }
        }
    }
    all
}

/// Who needs less, if the rounds of both are apart.
fn verdict(findings: &Findings, sidecars: Number, ambit: Number, what: What) -> Verdict {
    let of_rounds = matches!(
        what,
        What::IdleCores | What::Cores | What::Half | What::Most
    );
    if of_rounds && findings.rounds.0 < FEWEST {
        return Verdict::Neither;
    }
    let both = |at| findings.median(at).zip(findings.spread(at));
    let (Some((a, (a_least, a_most))), Some((b, (b_least, b_most)))) =
        (both(sidecars), both(ambit))
    else {
        return Verdict::Neither;
    };
    let coarse = matches!(what, What::IdleCores | What::Cores) && (a - b).abs() < CORES_SEEN;
    if coarse || (a - b).abs() <= NOTHING * a.max(b) {
        Verdict::Neither
    } else if a_most < b_least {
        Verdict::Sidecars
    } else if b_most < a_least {
        Verdict::Ambit
    } else {
        Verdict::Neither
    }
}

/// The part of the page about what sidecars do better.
pub(super) fn wins(all: &[Compared]) -> String {
    let mut text = "## Where sidecars win\n\n".to_owned();
    let mut won = false;
    for (pair, ..) in PAIRS {
        for (_, respect, unit) in RESPECTS {
            let cases = all.iter().filter(|one| {
                one.pair == pair && one.respect == respect && one.verdict == Verdict::Sidecars
            });
            let cases: Vec<String> = cases
                .map(|one| {
                    let [a, b] = [one.sidecars, one.ambit].map(|value| digits(value, unit));
                    format!("{} ({a} beside {b} {unit})", many(one.pods))
                })
                .collect();
            if !cases.is_empty() {
                won = true;
                let _ = writeln!(text, "* **{respect}, {pair}**: with {}.", cases.join(", "));
            }
        }
    }
    if !won {
        text.push_str("In none of the numbers above.\n");
    }
    let close: Vec<String> = all
        .iter()
        .filter(|one| one.verdict == Verdict::Neither)
        .map(|one| format!("{}, {}, {}", one.respect, one.pair, many(one.pods)))
        .collect();
    if !close.is_empty() {
        let _ = writeln!(
            text,
            "\nToo close to tell (less than 5 % apart, or the rounds overlap, or are fewer than three): {}.",
            close.join("; ")
        );
    }
    text
}

fn digits(value: f64, unit: &str) -> String {
    if unit == "cores" {
        format!("{value:.3}")
    } else {
        number(value)
    }
}

/// A number of pods in words.
pub(super) fn many(pods: usize) -> String {
    if pods == 1 {
        "1 pod".to_owned()
    } else {
        format!("{pods} pods")
    }
}
