//! A plugin's JSON: its configuration, and a typical result of both families, in and out.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use podwire_benches::{criterion, must};
use podwire_cni::{
    NetworkConfig, SpecVersion,
    types::{Interface, Ip, Route, Success},
};
use serde_json::Value;

/// As a runtime passes it to CHECK and DEL.
const RESULT: &str = r#"{
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "pw24xagl7n3fgbn", "mac": "02:00:00:00:02:02"},
        {"name": "eth0", "mac": "02:00:00:00:01:02", "sandbox": "/run/netns/a"}
    ],
    "ips": [
        {"address": "10.244.0.2/32", "gateway": "10.244.0.1", "interface": 1},
        {"address": "fd00:10:244::2/128", "gateway": "fd00:10:244::1", "interface": 1}
    ],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.0.1"}, {"dst": "::/0", "gw": "fd00:10:244::1"}],
    "dns": {"nameservers": ["10.96.0.10"], "search": ["default.svc.cluster.local"]}
}"#;

fn cni(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cni");
    let newest = SpecVersion::V1_0_0;
    let read = |text: &str| {
        let value: Value = must(serde_json::from_str(text));
        must(Success::from_value(value, newest))
    };
    let expected = result();
    group.bench_function("decode", |bencher| {
        assert_eq!(read(RESULT), expected, "what was decoded");
        bencher.iter(|| read(black_box(RESULT)));
    });
    group.bench_function("encode", |bencher| {
        let written = expected.to_value(newest).to_string();
        assert_eq!(read(&written), expected, "what was encoded");
        bencher.iter(|| black_box(&expected).to_value(newest).to_string());
    });
    group.bench_function("convert", |bencher| {
        // To the oldest form with lists, and back.
        let convert = |result: &Success| {
            let value = result.to_value(SpecVersion::V0_3_1);
            must(Success::from_value(value, SpecVersion::V0_3_1))
        };
        assert_eq!(convert(&expected), expected, "what was converted");
        bencher.iter(|| convert(black_box(&expected)));
    });
    let config = format!(
        r#"{{"cniVersion": "1.0.0", "name": "podwire", "type": "podwire-cni",
            "runDir": "/run/podwire", "prevResult": {RESULT}}}"#
    );
    group.bench_function("decode_config", |bencher| {
        let parsed = must(NetworkConfig::parse(config.as_bytes()));
        assert_eq!(must(parsed.prev_result()), Some(result()), "the previous result");
        bencher.iter(|| must(NetworkConfig::parse(black_box(config.as_bytes()))));
    });
    group.finish();
}

/// What [`RESULT`] says.
fn result() -> Success {
    let mut host = Interface::new("pw24xagl7n3fgbn");
    host.mac = Some("02:00:00:00:02:02".to_owned());
    let mut container = Interface::in_sandbox("eth0", "/run/netns/a");
    container.mac = Some("02:00:00:00:01:02".to_owned());
    let mut success = Success::default();
    success.interfaces = vec![host, container];
    let families = [
        ("10.244.0.2/32", "10.244.0.1", "0.0.0.0/0"),
        ("fd00:10:244::2/128", "fd00:10:244::1", "::/0"),
    ];
    for (address, gateway, all) in families {
        let gateway = Some(must(gateway.parse()));
        let mut ip = Ip::new(must(address.parse()));
        (ip.gateway, ip.interface) = (gateway, Some(1));
        let mut route = Route::new(must(all.parse()));
        route.gw = gateway;
        success.ips.push(ip);
        success.routes.push(route);
    }
    success.dns.nameservers = vec!["10.96.0.10".to_owned()];
    success.dns.search = vec!["default.svc.cluster.local".to_owned()];
    success
}

criterion_group! { name = benches; config = criterion(); targets = cni }
criterion_main!(benches);
