use super::*;

fn record<'a>() -> Record<'a> {
    Record {
        source_address: Some("10.0.0.1:4000".parse().unwrap()),
        source: Endpoint {
            workload: "web-1",
            namespace: "shop",
            identity: Some(&"spiffe://cluster.local/ns/shop/sa/web"),
            cluster: "Kubernetes",
        },
        destination_address: Some("10.0.0.2:15008".parse().unwrap()),
        hbone_address: Some(&"10.0.0.2:80"),
        service: "cart.shop.svc.cluster.local",
        destination: Endpoint {
            workload: "cart-1",
            namespace: "shop",
            ..Endpoint::default()
        },
        direction: Direction::Outbound,
        bytes_sent: 11,
        bytes_received: 22,
        duration: Duration::from_millis(13),
        error: None,
        trace: None,
    }
}

fn without_time(line: Vec<u8>) -> String {
    let text = String::from_utf8(line).unwrap();
    text.split_once('\t').unwrap().1.to_owned()
}

#[test]
fn a_plain_record_has_istio_s_keys_in_order() {
    assert_eq!(
        without_time(record().line(LogFormat::Plain)),
        "info\taccess\tconnection complete\tsrc.addr=10.0.0.1:4000 src.workload=\"web-1\" \
         src.namespace=\"shop\" src.identity=\"spiffe://cluster.local/ns/shop/sa/web\" \
         src.cluster=\"Kubernetes\" dst.addr=10.0.0.2:15008 dst.hbone_addr=10.0.0.2:80 \
         dst.service=\"cart.shop.svc.cluster.local\" dst.workload=\"cart-1\" \
         dst.namespace=\"shop\" direction=\"outbound\" bytes_sent=11 bytes_recv=22 \
         duration=\"13ms\"\n"
    );
}

#[test]
fn a_failed_record_is_an_error_with_its_reason() {
    let failed = Record {
        error: Some(&"policy \"deny\" said no"),
        ..record()
    };
    let value: serde_json::Value = serde_json::from_slice(&failed.line(LogFormat::Json)).unwrap();
    assert_eq!(value["level"], "error");
    assert_eq!(value["scope"], "access");
    assert_eq!(value["error"], "policy \"deny\" said no");
    assert_eq!(value["bytes_recv"], 22);
    assert_eq!(value["src.addr"], "10.0.0.1:4000");
}

#[test]
fn what_is_not_known_is_left_out() {
    let line = without_time(Record::default().line(LogFormat::Plain));
    assert_eq!(
        line,
        "info\taccess\tconnection complete\tdirection=\"outbound\" bytes_sent=0 bytes_recv=0 \
         duration=\"0ms\"\n"
    );
}

#[test]
fn an_object_of_another_shape_is_valid_json() {
    let mut line = Line::object();
    line.text("method", "GET");
    line.bare("response_code", 200);
    line.text_or_null("route_name", None);
    assert_eq!(
        String::from_utf8(line.finish()).unwrap(),
        "{\"method\":\"GET\",\"response_code\":200,\"route_name\":null}\n"
    );
}

#[test]
fn values_are_cut_and_stay_on_one_line() {
    let long = "\u{2028}\u{85}\n".repeat(5000);
    let mut line = Line::object();
    line.text("x", &long);
    let bytes = line.finish();
    assert!(bytes.len() < 7 * MAX_VALUE);
    let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(value["x"].as_str().unwrap().chars().count(), MAX_VALUE);
}
