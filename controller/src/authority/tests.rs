use std::path::Path;
use std::sync::Arc;

use ambit_objects::Objects;

use super::grant::{Refused, grant};
use super::review::{Bound, Caller};
use crate::cluster::Cluster;
use crate::config::Mesh;
use crate::translate::translate;

fn cluster() -> Cluster {
    let text = "
apiVersion: v1
kind: Pod
metadata: {name: ztunnel-1, namespace: istio-system, uid: z1}
spec: {nodeName: n1, serviceAccountName: ztunnel, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: ztunnel-0, namespace: istio-system, uid: z0}
spec: {serviceAccountName: ztunnel, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {nodeName: n1, serviceAccountName: web, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop}
spec: {nodeName: n2, serviceAccountName: cart, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: shop}
spec: {nodeName: n1, serviceAccountName: done, containers: []}
status: {phase: Succeeded}
---
apiVersion: v1
kind: Pod
metadata: {name: plain, namespace: shop}
spec: {nodeName: n1, containers: []}
";
    let objects = Arc::new(Objects::from_text(Path::new("test.yaml"), text));
    translate(objects, Mesh::default()).0
}

fn caller(namespace: &str, account: &str, pod: Option<&str>) -> Caller {
    Caller {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
        pod: pod.map(|name| Bound {
            name: name.to_owned(),
            uid: String::new(),
        }),
        node: None,
    }
}

fn identity(namespace: &str, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}

#[test]
fn everyone_gets_its_own_identity() {
    let cluster = cluster();
    for (namespace, account) in [("shop", "web"), ("istio-system", "ztunnel")] {
        let caller = caller(namespace, account, None);
        let own = identity(namespace, account);
        assert_eq!(grant(&cluster, &caller, None).unwrap().to_string(), own);
        assert_eq!(
            grant(&cluster, &caller, Some(&own)).unwrap().to_string(),
            own
        );
    }
}

#[test]
fn a_node_proxy_gets_identities_of_living_pods_on_its_node_and_no_others() {
    let cluster = cluster();
    let proxy = caller("istio-system", "ztunnel", Some("ztunnel-1"));
    for account in ["web", "default"] {
        let wanted = identity("shop", account);
        assert_eq!(
            grant(&cluster, &proxy, Some(&wanted)).unwrap().to_string(),
            wanted
        );
    }
    let not_here = |account: &str| Refused::NotOnNode(identity("shop", account), "n1".to_owned());
    assert_eq!(
        grant(&cluster, &proxy, Some(&identity("shop", "cart"))),
        Err(not_here("cart"))
    );
    assert_eq!(
        grant(&cluster, &proxy, Some(&identity("shop", "done"))),
        Err(not_here("done"))
    );
    assert_eq!(
        grant(&cluster, &proxy, Some(&identity("shop", "we"))),
        Err(not_here("we"))
    );
    let foreign = "spiffe://other.domain/ns/shop/sa/web";
    assert_eq!(
        grant(&cluster, &proxy, Some(foreign)),
        Err(Refused::TrustDomain("other.domain".to_owned()))
    );
    assert!(matches!(
        grant(&cluster, &proxy, Some("shop/web")),
        Err(Refused::NoIdentity(..))
    ));
}

#[test]
fn only_a_node_proxy_on_a_node_may_ask_for_others() {
    let cluster = cluster();
    let web = identity("shop", "web");
    let refused = |caller: Caller| grant(&cluster, &caller, Some(&web)).unwrap_err();
    let not_trusted = |caller: Caller| Refused::NotANodeProxy(caller.to_string());
    let cart = || caller("shop", "cart", Some("cart"));
    assert_eq!(refused(cart()), not_trusted(cart()));
    // The account's name counts with its namespace.
    let elsewhere = || caller("shop", "ztunnel", None);
    assert_eq!(refused(elsewhere()), not_trusted(elsewhere()));
    assert_eq!(
        refused(caller("istio-system", "ztunnel", None)),
        Refused::NoNode
    );
    assert_eq!(
        refused(caller("istio-system", "ztunnel", Some("ztunnel-0"))),
        Refused::NoNode
    );
    assert_eq!(
        refused(caller("istio-system", "ztunnel", Some("gone"))),
        Refused::NoNode
    );
}
