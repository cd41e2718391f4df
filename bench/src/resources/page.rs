//! The page about the numbers. Every statement in it that depends on a number is made from the number, so that it
//! cannot say what a new measurement does not.

use std::fmt::Write as _;

use super::findings::{Findings, Number, Way, What};
use super::verdict::{Compared, PAIRS, Verdict, compared, many, wins};
use crate::plot::{Bar, Chart, Panel};
use crate::report::{Better, number};

/// The page, as Markdown; charts are beside it in `plots/`.
#[must_use]
pub fn markdown(findings: &Findings) -> String {
    let all = compared(findings);
    [
        head(findings),
        short(findings, &all),
        memory(findings),
        cpu(findings),
        latency(findings),
        wins(&all),
        LEFT_OUT.to_owned(),
    ]
    .join("\n")
}

/// A way's name in a chart: the memory of a sidecar is that for bytes and requests.
fn arm(what: What, way: Way) -> &'static str {
    match (what, way) {
        (What::AfterShared, Way::SidecarsBytes) => "sidecars",
        _ => way.name(),
    }
}

/// The charts that the page shows, with the names of their files.
#[must_use]
pub fn charts(findings: &Findings) -> [(&'static str, Chart); 3] {
    let panel = |pods: usize, what: What, name: String, ways: &[Way]| {
        let bars = ways.iter().filter_map(|way| {
            let at = Number {
                pods,
                way: *way,
                what,
            };
            let middle = findings.median(at)?;
            Some(Bar {
                name: arm(what, *way).to_owned(),
                middle,
                spread: findings.spread(at)?,
            })
        });
        Panel {
            name,
            better: Better::Less,
            bars: bars.collect(),
        }
    };
    let chart = |title: &str, what: What, panels: Vec<Panel>| Chart {
        title: title.to_owned(),
        arms: Way::ALL.map(|way| arm(what, way).to_owned()).into(),
        ours: [Way::Node, Way::Waypoint]
            .map(|way| way.name().to_owned())
            .into(),
        one_scale: true,
        panels,
    };
    let pods = || findings.pods.iter().copied();
    let memory = pods().map(|pods| {
        panel(
            pods,
            What::AfterShared,
            format!("{}, MiB", many(pods)),
            &Way::MESHES,
        )
    });
    let cpu = pods().map(|pods| {
        panel(
            pods,
            What::Cores,
            format!("{}, cores", many(pods)),
            &Way::ALL[1..],
        )
    });
    let times = pods().flat_map(|pods| {
        [(What::Half, "p50"), (What::Most, "p99")]
            .map(|(what, name)| panel(pods, what, format!("{}, {name} µs", many(pods)), &Way::ALL))
    });
    let rate = findings.rate;
    [
        (
            "resources-memory.svg",
            chart(
                "Memory of a node after load, shared pages once",
                What::AfterShared,
                memory.collect(),
            ),
        ),
        (
            "resources-cpu.svg",
            chart(
                &format!("CPU of all proxies at {rate} requests a second"),
                What::Cores,
                cpu.collect(),
            ),
        ),
        (
            "resources-latency.svg",
            chart(
                &format!("Time of a request at {rate} a second"),
                What::Half,
                times.collect(),
            ),
        ),
    ]
}

fn head(findings: &Findings) -> String {
    let on: Vec<String> = findings
        .on
        .iter()
        .map(|(name, text)| format!("{name} {text}"))
        .collect();
    let (rounds, seconds) = findings.rounds;
    format!(
        "# What the mesh takes of a node

Made by `./scripts/resource-usage.sh`, text and all; do not edit. One node proxy for all pods of a node, and a waypoint
where requests are to be read, beside one Envoy sidecar for each pod. The same applications get the same requests, on one
machine, in turn.

**On**: {}. Both nodes, the applications and the load share this machine.

**Work**: a client on one node sends {} HTTP/1.1 requests a second, answered with 1 KiB, to the pods on another node; in total, not
to each. They are sent when they are due, not when the one before is answered; one connection for each pod, at least four.
*L4*: connections to pods, of which the proxies see bytes. *HTTP*: requests to a service, which proxies read and spread over the
pods. Rounds of {seconds} s of each, in turn: {rounds}; medians, with the least and the most in brackets.

**Sidecars**: real Envoys in the shape of Istio's: redirect of all traffic, mutual TLS between them with certificates of the
mesh, HTTP read on both sides, no access log, the statistics that Istio keeps. **Ambit**: node agent, ztunnel and waypoint as they are,
without an access log.

**Memory** is that of the node with the pods: of all sidecars, or of the agent and the ztunnel (and the waypoint). *All pages* adds up what
each process has resident; *shared once* counts pages that the sidecars of one node share (the program) a single time, as the node
does. **CPU** is that of all proxies on the way, both nodes'. Kernel work that is not done in a proxy's name is in neither.
",
        on.join(", "),
        findings.rate
    )
}

/// The most telling numbers.
fn short(findings: &Findings, all: &[Compared]) -> String {
    let ends = [findings.pods.iter().min(), findings.pods.iter().max()];
    let [Some(few), Some(most)] = ends.map(Option::<&usize>::copied) else {
        return String::new();
    };
    let mut lines = short_memory(findings, few, most);
    for (name, sidecars, ambit) in PAIRS {
        lines.extend(short_load(findings, most, (name, sidecars, ambit)));
    }
    let count = |verdict| all.iter().filter(|one| one.verdict == verdict).count();
    lines.push(format!(
        "Of {} comparisons below, Ambit needs less in {}, sidecars in {}; {} are too close to tell.",
        all.len(),
        count(Verdict::Ambit),
        count(Verdict::Sidecars),
        count(Verdict::Neither)
    ));
    format!("## In short\n\n* {}\n", lines.join("\n* "))
}

fn short_memory(findings: &Findings, few: usize, most: usize) -> Vec<String> {
    let what = What::AfterShared;
    let of = |way, pods| findings.median(Number { pods, way, what });
    let both = |pods| of(Way::SidecarsBytes, pods).zip(of(Way::Node, pods));
    let mut lines = Vec::new();
    let Some((sidecars, ambit)) = both(most) else {
        return lines;
    };
    lines.push(format!(
        "**Memory** with {}: sidecars {} MiB, ztunnel and agent {} MiB: {}.",
        many(most),
        number(sidecars),
        number(ambit),
        times(sidecars, ambit)
    ));
    if let (true, Some((sidecars_few, ambit_few))) = (most > few, both(few)) {
        let each = |more: f64| more / (most - few) as f64;
        lines.push(format!(
            "**One more pod**: {:.2} MiB of sidecar, {:.2} MiB of ztunnel and agent.",
            each(sidecars - sidecars_few),
            each(ambit - ambit_few)
        ));
    }
    lines
}

fn short_load(findings: &Findings, pods: usize, pair: (&str, Way, Way)) -> Vec<String> {
    let (name, sidecars, ambit) = pair;
    let of = |way, what| findings.median(Number { pods, way, what });
    let mut lines = Vec::new();
    if let (Some(a), Some(b)) = (of(sidecars, What::Cores), of(ambit, What::Cores)) {
        lines.push(format!(
            "**CPU, {name}**, {}: sidecars {a:.3} cores at {} requests a second, Ambit {b:.3}: {}.",
            many(pods),
            findings.rate,
            times(a, b)
        ));
    }
    let half = [Way::None, sidecars, ambit].map(|way| of(way, What::Half));
    if let [Some(none), Some(a), Some(b)] = half {
        lines.push(format!(
            "**Added latency, {name}**, {}, p50: sidecars {:.0} µs, Ambit {:.0} µs.",
            many(pods),
            a - none,
            b - none
        ));
    }
    lines
}

/// One number as a multiple of another.
fn times(sidecars: f64, ambit: f64) -> String {
    if sidecars >= ambit {
        format!("{:.1} times as much", sidecars / ambit)
    } else {
        format!("Ambit takes {:.1} times as much", ambit / sidecars)
    }
}

/// A table: a row for each number of pods.
fn table(findings: &Findings, heads: &[&str], cells: impl Fn(usize) -> Vec<String>) -> String {
    let mut text = format!(
        "| pods on the node | {} |\n|---:|{}\n",
        heads.join(" | "),
        "---:|".repeat(heads.len())
    );
    for pods in &findings.pods {
        let _ = writeln!(text, "| {pods} | {} |", cells(*pods).join(" | "));
    }
    text
}

fn memory(findings: &Findings) -> String {
    let mut text =
        "## Memory of the node, MiB\n\n![Memory](plots/resources-memory.svg)\n".to_owned();
    for (name, all, once) in [
        ("Idle", What::Idle, What::IdleShared),
        ("After load", What::After, What::AfterShared),
    ] {
        let heads = [
            "sidecars, all pages",
            "sidecars, shared once",
            "agent + ztunnel",
            "agent + ztunnel + waypoint",
            "sidecars : agent + ztunnel",
            "sidecars : with waypoint",
        ];
        let cells = table(findings, &heads, |pods| {
            let of = |way, what| findings.median(Number { pods, way, what });
            let sidecars = of(Way::SidecarsBytes, once);
            let ratio = |way| Some(sidecars? / of(way, once)?);
            let plain = [
                of(Way::SidecarsBytes, all),
                sidecars,
                of(Way::Node, once),
                of(Way::Waypoint, once),
            ];
            let plain = plain.map(|value| value.map_or(String::new(), number));
            let ratios = [ratio(Way::Node), ratio(Way::Waypoint)];
            let ratios =
                ratios.map(|value| value.map_or(String::new(), |value| format!("{value:.1} ×")));
            plain.into_iter().chain(ratios).collect()
        });
        let _ = write!(text, "\n{name}:\n\n{cells}");
    }
    text
}

fn cell(findings: &Findings, at: Number, shown: impl Fn(f64) -> String) -> String {
    match (findings.median(at), findings.spread(at)) {
        (Some(middle), Some((least, most))) => {
            format!("{} ({}–{})", shown(middle), shown(least), shown(most))
        }
        _ => String::new(),
    }
}

fn cpu(findings: &Findings) -> String {
    let cores = |value: f64| format!("{value:.3}");
    let idle = table(
        findings,
        &["sidecars", "ambit, L4", "ambit + waypoint"],
        |pods| {
            let ways = Way::MESHES.map(|way| {
                cell(
                    findings,
                    Number {
                        pods,
                        way,
                        what: What::IdleCores,
                    },
                    cores,
                )
            });
            ways.into()
        },
    );
    let heads = [
        "sidecars, L4",
        "ambit, L4",
        "sidecars : ambit",
        "sidecars, HTTP",
        "ambit + waypoint",
        "sidecars : ambit",
    ];
    let load = table(findings, &heads, |pods| {
        let at = |way| Number {
            pods,
            way,
            what: What::Cores,
        };
        let pairs = PAIRS.map(|(_, sidecars, ambit)| {
            let ratio = findings
                .median(at(sidecars))
                .zip(findings.median(at(ambit)));
            let ratio = ratio.map_or(String::new(), |(sidecars, ambit)| {
                format!("{:.1} ×", sidecars / ambit)
            });
            [
                cell(findings, at(sidecars), cores),
                cell(findings, at(ambit), cores),
                ratio,
            ]
        });
        pairs.into_iter().flatten().collect()
    });
    format!(
        "## CPU, cores\n\n![CPU](plots/resources-cpu.svg)\n\nAt {} requests a second:\n\n{load}\nIdle:\n\n{idle}",
        findings.rate
    )
}

fn latency(findings: &Findings) -> String {
    let mut text =
        "## Time of a request, µs\n\n![Latency](plots/resources-latency.svg)\n".to_owned();
    let heads = Way::ALL.map(Way::name);
    for (what, name) in [(What::Half, "p50"), (What::Most, "p99")] {
        let cells = table(findings, &heads, |pods| {
            let none = findings.median(Number {
                pods,
                way: Way::None,
                what,
            });
            let cells = Way::ALL.map(|way| {
                let at = Number { pods, way, what };
                let whole = cell(findings, at, |value| format!("{value:.0}"));
                match (way, findings.median(at), none) {
                    (Way::None, ..) | (_, None, _) | (.., None) => whole,
                    (_, Some(middle), Some(none)) => format!("**{:+.0}** · {whole}", middle - none),
                }
            });
            cells.into()
        });
        let _ = write!(
            text,
            "\n{name}; in bold what is added to no mesh:\n\n{cells}"
        );
    }
    text
}

/// What holds whatever the numbers are.
const LEFT_OUT: &str = "## What the numbers leave out

For sidecars: Istio's agent in each pod (a process of its own beside Envoy), Istio's statistics and peer metadata filters, and the configuration
of a large mesh, which each sidecar holds as a whole unless it is told otherwise. All three would make the sidecars larger.

For Ambit: a waypoint is one more place for a request to pass, and here it has a place on the same machine; across a network it costs
a hop more than sidecars do. There is one waypoint here for all pods; for availability there would be two.

What no number shows: a sidecar that fails or is overloaded takes one pod with it, a node proxy all pods of its node. Keys of
a pod stay in the pod with sidecars, and in the node proxy here.
";

#[cfg(test)]
mod tests {
    use super::super::findings::{Findings, Number, Way, What};
    use super::{charts, markdown};

    /// Sidecars need ten times as much of everything, but for the p99 of HTTP.
    fn findings(sidecars_p99: [f64; 3]) -> Findings {
        let mut findings = Findings::of(vec![1, 50], 500.0, (3, 10));
        for pods in [1, 50] {
            for way in Way::ALL {
                let factor = match way {
                    Way::SidecarsBytes | Way::SidecarsHttp => 10.0,
                    _ => 1.0,
                };
                let mut add = |what, value| findings.add(Number { pods, way, what }, value);
                for round in [0.9, 1.0, 1.1] {
                    for what in [What::Idle, What::IdleShared, What::After, What::AfterShared] {
                        add(what, factor * round * pods as f64);
                    }
                    for what in [What::IdleCores, What::Cores, What::Half] {
                        add(what, factor * round * 0.1);
                    }
                }
                let rounds = if way == Way::SidecarsHttp {
                    sidecars_p99
                } else {
                    [9.0, 10.0, 11.0]
                };
                for value in rounds {
                    let value = if way == Way::SidecarsBytes {
                        99.0
                    } else {
                        value
                    };
                    add(What::Most, value);
                }
            }
        }
        findings
    }

    /// The part of the page under a heading.
    fn part(page: &str, heading: &str) -> String {
        let rest = page.split(&format!("## {heading}\n")).nth(1).unwrap();
        rest.split("\n## ").next().unwrap().to_owned()
    }

    #[test]
    fn says_where_sidecars_win_only_where_they_do() {
        let page = markdown(&findings([2.0, 3.0, 4.0]));
        let wins = part(&page, "Where sidecars win");
        assert!(
            wins.contains(
                "p99, HTTP**: with 1 pod (3.00 beside 10.0 µs), 50 pods (3.00 beside 10.0 µs)"
            ),
            "{wins}"
        );
        assert_eq!(wins.matches("* **").count(), 1, "{wins}");
        assert!(
            part(&page, "In short").contains("Ambit needs less in 22, sidecars in 2; 0 are"),
            "{page}"
        );

        let page = markdown(&findings([90.0, 99.0, 100.0]));
        assert!(
            part(&page, "Where sidecars win").contains("In none of the numbers"),
            "{page}"
        );
    }

    #[test]
    fn rounds_that_overlap_decide_nothing() {
        let page = markdown(&findings([2.0, 3.0, 9.5]));
        let wins = part(&page, "Where sidecars win");
        assert!(
            wins.contains("In none") && wins.contains("p99, HTTP, 1 pod"),
            "{wins}"
        );
    }

    #[test]
    fn tables_and_charts_show_medians_and_what_is_added() {
        let findings = findings([2.0, 3.0, 4.0]);
        let page = markdown(&findings);
        let memory = part(&page, "Memory of the node, MiB");
        assert!(
            memory.contains("| 50 | 500.0 | 500.0 | 50.0 | 50.0 | 10.0 × | 10.0 × |"),
            "{memory}"
        );
        assert!(page.contains("**+89** · 99 (99–99)"), "{page}");
        for (name, chart) in charts(&findings) {
            assert!(page.contains(&format!("plots/{name}")), "{name}");
            assert!(
                chart.panels.iter().all(|panel| panel.bars.len() >= 3),
                "{name}"
            );
        }
    }
}
