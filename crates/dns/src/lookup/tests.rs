//! One row for each way a name may be meant.

use super::{Found, Scope, find};
use crate::fixture::{SHOP, kubernetes, private, service, view, vip};
use ambit_model::View;
use ambit_model::service::Service;

/// `NAMESPACE/HOST` of the service, and `→NAME` where the answer is an alias.
fn found(view: &View, scope: &Scope<'_>, asked: &str) -> String {
    match find(view, scope, asked) {
        None => "-".to_owned(),
        Some(Found { service, alias }) => {
            let alias = alias.map(|alias| format!("→{alias}")).unwrap_or_default();
            format!("{}{alias}", service.key)
        }
    }
}

fn mesh() -> View {
    let block = Service {
        vips: vec![ambit_model::address::Vip {
            network: "".into(),
            block: "10.9.0.0/24".parse().unwrap(),
        }],
        ..service("shop", "block.example", &[])
    };
    let remote = Service {
        vips: vec![vip("elsewhere", "10.1.0.9")],
        ..service("shop", "remote.example", &[])
    };
    view(
        [
            kubernetes("shop", "web", &["10.1.0.1"]),
            kubernetes("bank", "web", &["10.1.0.2"]),
            kubernetes("bank", "ledger", &["10.1.0.3"]),
            kubernetes("bank", "headless", &[]),
            service("shop", "api.example.com", &["10.2.0.1"]),
            service("shop", "*.wild.example", &["10.2.0.2"]),
            service("shop", "*.deep.wild.example", &["10.2.0.3"]),
            service("shop", "exact.wild.example", &["10.2.0.4"]),
            service("shop", "single", &["10.2.0.5"]),
            service("shop", "pair.name", &["10.2.0.7"]),
            private(service("bank", "private.example", &["10.2.0.6"])),
            service("shop", "no-address.example", &[]),
            block,
            remote,
        ],
        [],
    )
}

#[test]
fn finds_what_a_client_of_kubernetes_means() {
    let view = mesh();
    let table = [
        // The name itself.
        (
            "web.shop.svc.cluster.local",
            "shop/web.shop.svc.cluster.local",
        ),
        (
            "ledger.bank.svc.cluster.local",
            "bank/ledger.bank.svc.cluster.local",
        ),
        (
            "headless.bank.svc.cluster.local",
            "bank/headless.bank.svc.cluster.local",
        ),
        ("api.example.com", "shop/api.example.com"),
        ("remote.example", "shop/remote.example"),
        // What Kubernetes completes it to, by labels.
        ("web", "shop/web.shop.svc.cluster.local"),
        ("single", "shop/single"),
        ("ledger", "-"),
        ("ledger.bank", "bank/ledger.bank.svc.cluster.local"),
        ("web.bank", "bank/web.bank.svc.cluster.local"),
        ("pair.name", "shop/pair.name"),
        ("ledger.bank.svc", "bank/ledger.bank.svc.cluster.local"),
        ("ledger.bank.other", "-"),
        ("ledger.bank.svc.other", "-"),
        ("", "-"),
        // A search domain was appended.
        (
            "web.bank.shop.svc.cluster.local",
            "bank/web.bank.svc.cluster.local→web.bank",
        ),
        (
            "ledger.bank.svc.cluster.local",
            "bank/ledger.bank.svc.cluster.local",
        ),
        (
            "ledger.bank.svc.svc.cluster.local",
            "bank/ledger.bank.svc.cluster.local→ledger.bank.svc",
        ),
        (
            "ledger.bank.svc.cluster.local.shop.svc.cluster.local",
            "bank/ledger.bank.svc.cluster.local→ledger.bank.svc.cluster.local",
        ),
        (
            "ledger.bank.svc.cluster.local.svc.cluster.local",
            "bank/ledger.bank.svc.cluster.local→ledger.bank.svc.cluster.local",
        ),
        (
            "ledger.bank.svc.cluster.local.cluster.local",
            "bank/ledger.bank.svc.cluster.local→ledger.bank.svc.cluster.local",
        ),
        (
            "api.example.com.shop.svc.cluster.local",
            "shop/api.example.com→api.example.com",
        ),
        (
            "api.example.com.svc.cluster.local",
            "shop/api.example.com→api.example.com",
        ),
        (
            "api.example.com.cluster.local",
            "shop/api.example.com→api.example.com",
        ),
        ("single.shop.svc.cluster.local", "shop/single→single"),
        // Not this client's search domain.
        ("api.example.com.bank.svc.cluster.local", "-"),
        ("api.example.com.corp.example", "-"),
        // Wildcards: the longest counts, and never an alias.
        ("a.wild.example", "shop/*.wild.example"),
        ("a.b.wild.example", "shop/*.wild.example"),
        ("a.deep.wild.example", "shop/*.deep.wild.example"),
        ("exact.wild.example", "shop/exact.wild.example"),
        ("a.exact.wild.example", "shop/*.wild.example"),
        (
            "a.wild.example.shop.svc.cluster.local",
            "shop/*.wild.example",
        ),
        ("wild.example", "-"),
        ("*.wild.example", "shop/*.wild.example"),
        // Not for this client, or without an address to tell.
        ("private.example", "-"),
        ("private.example.shop.svc.cluster.local", "-"),
        ("no-address.example", "-"),
        ("block.example", "-"),
        // Not ours at all.
        ("example.com", "-"),
        ("unknown.shop.svc.cluster.local", "-"),
        ("pod-0.headless.bank.svc.cluster.local", "-"),
        (".web", "-"),
        ("web.", "-"),
        (".shop.svc.cluster.local", "-"),
        ("..", "-"),
    ];
    for (asked, expected) in table {
        assert_eq!(found(&view, &SHOP, asked), expected, "{asked:?}");
    }
    let bank = Scope {
        namespace: "bank",
        ..SHOP
    };
    assert_eq!(
        found(&view, &bank, "private.example"),
        "bank/private.example"
    );
    assert_eq!(
        found(&view, &bank, "web"),
        "bank/web.bank.svc.cluster.local"
    );
}

#[test]
fn of_several_services_of_one_name_the_nearest_counts() {
    const NAME: &str = "api.example.com";
    let of = |namespace: &str| service(namespace, NAME, &["10.0.0.1"]);
    let canonical = |service: Service| Service {
        canonical: true,
        ..service
    };
    let prefer_d = Scope {
        preferred_namespace: "d",
        ..SHOP
    };
    let table = [
        (
            "its own namespace before the canonical one",
            vec![of("shop"), canonical(of("b"))],
            SHOP,
            "shop",
        ),
        (
            "the canonical one before the preferred one",
            vec![of("a"), canonical(of("c")), of("d")],
            prefer_d,
            "c",
        ),
        (
            "the preferred one before the first",
            vec![of("b"), of("d"), of("a")],
            prefer_d,
            "d",
        ),
        ("the first", vec![of("b"), of("d"), of("a")], SHOP, "a"),
        (
            "what it may not see does not count",
            vec![private(of("a")), of("b")],
            SHOP,
            "b",
        ),
        (
            "what has no address does not count",
            vec![service("shop", NAME, &[]), of("b")],
            SHOP,
            "b",
        ),
    ];
    for (what, services, scope, expected) in table {
        let view = view(services, []);
        assert_eq!(
            found(&view, &scope, NAME),
            format!("{expected}/{NAME}"),
            "{what}"
        );
    }
}

#[test]
fn search_domains_of_the_pod_count_where_they_are_known() {
    let view = mesh();
    let domains = ["bank.svc.cluster.local", "corp.example"].map(str::to_owned);
    let scope = Scope {
        search: Some(&domains),
        ..SHOP
    };
    let table = [
        (
            "api.example.com.bank.svc.cluster.local",
            "shop/api.example.com→api.example.com",
        ),
        (
            "api.example.com.corp.example",
            "shop/api.example.com→api.example.com",
        ),
        ("api.example.com.shop.svc.cluster.local", "-"),
        // A name of the company's, although the shop has a `web`, too.
        ("web.corp.example", "-"),
        ("a.wild.example.corp.example", "-"),
        (
            "a.wild.example.bank.svc.cluster.local",
            "shop/*.wild.example",
        ),
        ("web", "shop/web.shop.svc.cluster.local"),
    ];
    for (asked, expected) in table {
        assert_eq!(found(&view, &scope, asked), expected, "{asked:?}");
    }
    let none: [String; 0] = [];
    let scope = Scope {
        search: Some(&none),
        ..SHOP
    };
    assert_eq!(
        found(&view, &scope, "api.example.com.shop.svc.cluster.local"),
        "-"
    );
    assert_eq!(
        found(&view, &scope, "api.example.com"),
        "shop/api.example.com"
    );
}

#[test]
fn another_cluster_domain_is_another_set_of_names() {
    let view = view([service("shop", "web.shop.svc.corp", &[])], []);
    let scope = Scope {
        domain: "corp",
        ..SHOP
    };
    for asked in ["web", "web.shop", "web.shop.svc", "web.shop.svc.corp"] {
        assert_eq!(
            found(&view, &scope, asked),
            "shop/web.shop.svc.corp",
            "{asked}"
        );
    }
    assert_eq!(
        found(&view, &SHOP, "web.shop.svc.corp"),
        "-",
        "headless is a thing of Kubernetes"
    );
}
