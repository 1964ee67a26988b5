//! The objects of one file.

use std::collections::BTreeMap;

use crate::node::{Node, Value};
use crate::{Annotations, Namespace, Object, Pod};

/// An object, and the line that its document begins at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Defined {
    pub(crate) line: u64,
    pub(crate) object: Object,
}

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flaw {
    pub(crate) line: u64,
    pub(crate) why: String,
}

/// Reads YAML or JSON, of which the latter is a part of the former.
pub(crate) fn parse(text: &str) -> Result<Vec<Defined>, Flaw> {
    let documents: Vec<Node> = serde_saphyr::from_multiple(text).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line());
        Flaw { line, why: words(&error) }
    })?;
    if documents.is_empty() {
        let why = "nothing is in it; delete the file to delete its objects".into();
        return Err(Flaw { line: 1, why });
    }
    let mut found = Vec::new();
    for document in &documents {
        read(document, None, &mut found)?;
    }
    let mut lines = BTreeMap::new();
    for Defined { line, object } in &found {
        if let Some(first) = lines.insert(object.name(), *line) {
            let why = format!("{} is defined in line {first} already", object.name());
            return Err(Flaw { line: *line, why });
        }
    }
    Ok(found)
}

/// The first line of the parser's words, without the part of the file that it shows.
fn words(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    text.lines().next().unwrap_or("no YAML").to_owned()
}

/// `implied` is the kind of a list's items, which need not say it themselves.
fn read(node: &Node, implied: Option<&str>, found: &mut Vec<Defined>) -> Result<(), Flaw> {
    if !matches!(node.value, Value::Map(_)) {
        return Err(flaw(node, format!("{} is no Kubernetes object", node.kind())));
    }
    let Some(kind) = text(node, "kind")?.or(implied) else {
        return Err(flaw(node, "kind is missing".into()));
    };
    if !matches!(kind, "Pod" | "Namespace" | "List" | "PodList" | "NamespaceList") {
        return Ok(());
    }
    match (text(node, "apiVersion")?, implied) {
        (Some("v1"), _) | (None, Some(_)) => {}
        // Somebody else's kind of that name.
        (Some(_), _) => return Ok(()),
        (None, None) => return Err(flaw(node, "apiVersion is missing".into())),
    }
    let object = match kind {
        "Pod" => {
            let (metadata, name) = metadata(node, kind)?;
            let namespace = text(metadata, "namespace")?.filter(|text| !text.is_empty());
            Object::Pod(Pod {
                namespace: namespace.unwrap_or("default").to_owned(),
                name,
                annotations: annotations(metadata)?,
            })
        }
        "Namespace" => {
            let (metadata, name) = metadata(node, kind)?;
            Object::Namespace(Namespace { name, annotations: annotations(metadata)? })
        }
        list => {
            let implied = list.strip_suffix("List").filter(|kind| !kind.is_empty());
            let Some(items) = node.get("items") else { return Ok(()) };
            let Value::List(items) = &items.value else {
                return Err(flaw(items, format!("items is {}, not a list", items.kind())));
            };
            return items.iter().try_for_each(|item| read(item, implied, found));
        }
    };
    found.push(Defined { line: node.line, object });
    Ok(())
}

fn metadata<'n>(node: &'n Node, kind: &str) -> Result<(&'n Node, String), Flaw> {
    let metadata =
        node.get("metadata").ok_or_else(|| flaw(node, format!("{kind} without metadata")))?;
    match text(metadata, "name")? {
        Some(name) if !name.is_empty() => Ok((metadata, name.to_owned())),
        _ => Err(flaw(metadata, format!("{kind} without metadata.name"))),
    }
}

fn annotations(metadata: &Node) -> Result<Annotations, Flaw> {
    let Some(node) = metadata.get("annotations") else { return Ok(Annotations::new()) };
    let Value::Map(entries) = &node.value else {
        return Err(flaw(node, format!("annotations is {}, not a mapping", node.kind())));
    };
    let mut annotations = Annotations::new();
    for (key, node) in entries {
        let value = match &node.value {
            Value::Text(text) => text.clone(),
            Value::Null => String::new(),
            _ => {
                let why =
                    format!("annotation {key} is {}, not text; put it in quotes", node.kind());
                return Err(flaw(node, why));
            }
        };
        annotations.insert(key.clone(), value);
    }
    Ok(annotations)
}

fn text<'n>(node: &'n Node, key: &str) -> Result<Option<&'n str>, Flaw> {
    match node.get(key) {
        None => Ok(None),
        Some(Node { value: Value::Text(text), .. }) => Ok(Some(text)),
        Some(other) => Err(flaw(other, format!("{key} is {}, not text", other.kind()))),
    }
}

fn flaw(node: &Node, why: String) -> Flaw {
    Flaw { line: node.line, why }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(text: &str) -> Vec<(u64, String)> {
        let found = parse(text).unwrap();
        found.iter().map(|one| (one.line, one.object.name().to_string())).collect()
    }

    fn flawed(text: &str) -> (u64, String) {
        let flaw = parse(text).unwrap_err();
        (flaw.line, flaw.why)
    }

    #[test]
    fn objects_of_several_documents_are_found() {
        let text = "\
# A comment first.
---
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  annotations:
    podwire.io/pool: blue, red
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: 7, annotations: [] }
---
---
kind: Pod
apiVersion: v1
metadata:
  name: web-0
  namespace: shop
  labels: { app: web }
  annotations:
    podwire.io/sticky: \"true\"
    empty:
spec:
  containers:
    - name: web
      args: [1, 2.5, true, ~, 0x10]
---
apiVersion: v1
kind: Pod
metadata: { name: lonely }
";
        let found = parse(text).unwrap();
        let expected = [(3, "namespace shop"), (15, "pod shop/web-0"), (29, "pod default/lonely")];
        assert_eq!(names(text), expected.map(|(line, name)| (line, name.to_owned())));
        let Object::Namespace(namespace) = &found[0].object else { panic!() };
        assert_eq!(namespace.annotations["podwire.io/pool"], "blue, red");
        let Object::Pod(pod) = &found[1].object else { panic!() };
        assert_eq!(pod.annotations["podwire.io/sticky"], "true");
        assert_eq!(pod.annotations["empty"], "");
    }

    #[test]
    fn lists_and_json_are_read() {
        let list = "\
apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: Namespace
    metadata: { name: a }
  - apiVersion: v1
    kind: Service
    metadata: { name: s }
  - apiVersion: v1
    kind: Pod
    metadata: { name: b, namespace: a }
";
        assert_eq!(names(list), [(4, "namespace a".into()), (10, "pod a/b".into())]);
        // As `kubectl get pods -o json` and others indent it.
        let json = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"PodList\",\n\t\"items\": [\n\t\t{\"metadata\": \
                    {\"name\": \"b\", \"namespace\": \"a\", \"annotations\": {\"k\": \"\\u00e9\\/\"}}}\n\t]\n}\n";
        assert_eq!(names(json), [(5, "pod a/b".into())]);
        assert_eq!(names("{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[]}"), []);
        assert_eq!(names("apiVersion: example.com/v1\nkind: Pod\n"), []);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n";
        for (text, line, why) in [
            ("", 1, "nothing is in it"),
            ("# only words\n", 1, "nothing is in it"),
            ("a: 1\n", 1, "kind is missing"),
            ("- a\n", 1, "a list is no Kubernetes object"),
            ("kind: Pod\n", 1, "apiVersion is missing"),
            ("kind: 7\n", 1, "kind is 7, not text"),
            ("apiVersion: v1\nkind: Pod\n", 1, "Pod without metadata"),
            ("apiVersion: v1\nkind: Pod\nmetadata:\n  generateName: a-\n", 4, "metadata.name"),
            (&format!("{pod}  annotations:\n    k: true\n"), 6, "k is true, not text; put it in"),
            (&format!("{pod}  annotations:\n    k: 10\n"), 6, "k is 10, not text"),
            (&format!("{pod}  annotations: x\n"), 5, "annotations is text"),
            (&format!("{pod}---\n{pod}"), 6, "pod default/a is defined in line 1 already"),
            (&format!("{pod}  name: b\n"), 5, "duplicate"),
            (&format!("{pod}  x: [\n"), 5, ""),
            (&format!("{pod} x: 1\n"), 5, ""),
            ("{\"kind\": \"Pod\",\n", 1, ""),
        ] {
            let (found, words) = flawed(text);
            assert!(words.contains(why), "{text:?}: {words}");
            assert!(found.abs_diff(line) <= 1, "{text:?}: {found}: {words}");
            assert!(!words.is_empty() && !words.contains('\n'), "{text:?}: {words:?}");
        }
    }

    #[test]
    fn documents_that_grow_are_refused() {
        let mut text = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        let mut last = 'a';
        for next in 'b'..='i' {
            let of = format!("*{last},").repeat(9);
            text += &format!("{next}: &{next} [{of}]\n");
            last = next;
        }
        assert!(parse(&text).is_err());
        assert!(parse(&"[".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_text_like_a_manifest_makes_it_panic(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "apiVersion: v1\n", "kind: Pod\n", "kind: List\n", "metadata:\n", "  name: a\n",
                    "  annotations:\n", "    k: v\n", "items:\n", "- ", "---\n", "{", "}", "[", "]",
                    "&a ", "*a ", "\t", "\"", ": ", "\n", "!!binary ", "<<: ", "...\n", "|\n",
                ]),
                0..24,
            )
        ) {
            let _ = parse(&parts.concat());
        }
    }
}
