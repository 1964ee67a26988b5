//! Files of Kubernetes manifests, as somebody puts them into the agent's folder.
//!
//! A file that is none is an error, never a panic. The objects of a good one, written as a JSON list
//! and read again, are the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire_cluster::{Object, fuzzing::manifest};
use serde_json::{Value, json};

fuzz_target!(|text: &str| {
    let Ok(objects) = manifest(text) else { return };
    let items: Vec<Value> = objects.iter().map(written).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    assert_eq!(manifest(&list.to_string()), Ok(objects));
});

fn written(object: &Object) -> Value {
    let (kind, metadata) = match object {
        Object::Pod(pod) => (
            "Pod",
            json!({ "name": pod.name, "namespace": pod.namespace, "annotations": pod.annotations }),
        ),
        Object::Namespace(namespace) => {
            ("Namespace", json!({ "name": namespace.name, "annotations": namespace.annotations }))
        }
        other => panic!("{other:?} is not written yet"),
    };
    json!({ "apiVersion": "v1", "kind": kind, "metadata": metadata })
}
