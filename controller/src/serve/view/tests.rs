use std::path::Path;
use std::sync::Arc;

use ambit_objects::{Name, Objects};
use ambit_proto::discovery::Node;
use prost_types::{Struct, Value, value::Kind};

use super::{Refused, of};
use crate::authority::review::{Bound, Caller};
use crate::config::Mesh;
use crate::publish::Scope;
use crate::translate::translate;

fn value(text: &str) -> Value {
    Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    }
}

fn node(id: &str, metadata: &[(&str, &str)], labels: &[(&str, &str)]) -> Node {
    let fields = |pairs: &[(&str, &str)]| Struct {
        fields: pairs
            .iter()
            .map(|(key, text)| ((*key).to_owned(), value(text)))
            .collect(),
    };
    let mut metadata = fields(metadata);
    let labels = Value {
        kind: Some(Kind::StructValue(fields(labels))),
    };
    metadata.fields.insert("LABELS".to_owned(), labels);
    Node {
        id: id.to_owned(),
        metadata: Some(metadata),
        ..Node::default()
    }
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

/// A machine with a node proxy of its own.
const MACHINE: &str = "
apiVersion: v1
kind: Pod
metadata: { name: vm-1, namespace: shop, uid: v1, labels: { networking.istio.io/tunnel: http } }
spec: { serviceAccountName: cart, containers: [] }
status: { phase: Running, podIPs: [{ ip: 10.9.0.1 }] }
";

#[test]
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn what_a_client_proves_decides_what_it_sees() {
    let shop = include_str!("../../../tests/shop.yaml");
    let text = format!("{shop}\n---\n{MACHINE}");
    let objects = Arc::new(Objects::from_text(Path::new("test.yaml"), &text));
    let (cluster, _) = translate(objects, Mesh::default());
    let waypoint = Scope::Waypoint(Name::new("shop", "waypoint"));
    let label = ("gateway.networking.k8s.io/gateway-name", "waypoint");
    let ztunnel = || {
        node(
            "ztunnel~10.0.0.1~a.istio-system~x",
            &[
                ("NAMESPACE", "istio-system"),
                ("SERVICE_ACCOUNT", "ztunnel"),
            ],
            &[],
        )
    };
    let envoy = || {
        node(
            "waypoint~10.0.1.9~waypoint-1.shop~x",
            &[("NAMESPACE", "shop")],
            &[label],
        )
    };
    let table: Vec<(Caller, Node, Result<Scope, &str>)> = vec![
        (
            caller("istio-system", "ztunnel", Some("ztunnel-1")),
            ztunnel(),
            Ok(Scope::Node),
        ),
        (
            caller("shop", "waypoint", Some("waypoint-1")),
            envoy(),
            Ok(waypoint.clone()),
        ),
        // Without a pod among the objects the account has to bear the Gateway's name.
        (
            caller("shop", "waypoint", Some("elsewhere")),
            envoy(),
            Ok(waypoint),
        ),
        (
            caller("shop", "cart", None),
            envoy(),
            Err("no usable waypoint"),
        ),
        // A pod that is no waypoint is none, whatever its node id says.
        (
            caller("shop", "cart", Some("cart-1")),
            envoy(),
            Err("no usable waypoint"),
        ),
        (
            caller("other", "waypoint", None),
            envoy(),
            Err("node metadata says NAMESPACE shop"),
        ),
        (
            caller("shop", "cart", None),
            ztunnel(),
            Err("node metadata says NAMESPACE istio-system"),
        ),
        (
            caller("shop", "cart", None),
            node("ztunnel~x", &[], &[]),
            Err("not a node proxy's account"),
        ),
        (
            caller("shop", "cart", Some("vm-1")),
            node("ztunnel~x", &[], &[]),
            Ok(Scope::Node),
        ),
        // The account alone is that of other pods, too.
        (
            caller("shop", "cart", Some("cart-1")),
            node("ztunnel~x", &[], &[]),
            Err("nor is its pod labelled"),
        ),
        (
            caller("shop", "cart", None),
            node("sidecar~x", &[], &[]),
            Err("neither a node proxy's"),
        ),
        (
            caller("shop", "gone", None),
            node("waypoint~x", &[("WORKLOAD_NAME", "gone")], &[]),
            Err("no Gateway of that name"),
        ),
    ];
    for (caller, node, expected) in table {
        let outcome: Result<Scope, Refused> = of(&cluster, &caller, &node);
        match (outcome, expected) {
            (Ok(scope), Ok(expected)) => assert_eq!(scope, expected),
            (Err(refused), Err(expected)) => {
                assert!(
                    refused.to_string().contains(expected),
                    "{refused}\n{expected}"
                );
            }
            (outcome, expected) => panic!("{caller}: {outcome:?} is not {expected:?}"),
        }
    }
}
