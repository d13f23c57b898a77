//! Manifests: YAML or JSON files into objects, checked before anything is made.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use apiserver::resource::GroupVersionKind;
use apiserver::schema::Schemas;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Where an object was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file's path, or `standard input`.
    pub file: String,
    /// The line its document begins, from 1.
    pub line: usize,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// One object of a manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Where it was written.
    pub source: Source,
    /// Its kind.
    pub kind: GroupVersionKind,
    /// The resource in paths and whether it lives in namespaces.
    pub resource: Resource,
    /// What was written, with the namespace filled in.
    pub value: Value,
}

/// How a kind's objects are addressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The name in paths, for instance `pods`.
    pub plural: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

impl Object {
    /// Its name.
    pub fn name(&self) -> &str {
        text(&self.value, "/metadata/name")
    }

    /// Its namespace; empty when it lives in none.
    pub fn namespace(&self) -> &str {
        text(&self.value, "/metadata/namespace")
    }

    /// `Kind namespace/name`, as messages name it.
    pub fn title(&self) -> String {
        match (self.namespace(), self.name()) {
            ("" | "default", name) => format!("{} {name}", self.kind.kind),
            (namespace, name) => format!("{} {namespace}/{name}", self.kind.kind),
        }
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// Why manifests can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A folder without manifests.
    #[error("there are no manifests (*.yaml, *.yml, *.json) in {0}")]
    Empty(String),
    /// What is wrong in them, one line each: `FILE:LINE[:COLUMN]: …`.
    #[error("{}", .0.join("\n"))]
    Wrong(Vec<String>),
}

/// Reads the files and folders named, `-` being standard input, and checks what
/// is in them: syntax, kinds, names, the fields of the kinds known, and that no
/// object is there twice.
///
/// # Errors
/// Everything that is wrong, with file, line and, where known, column.
pub fn load(paths: &[PathBuf]) -> Result<Vec<Object>, Error> {
    let mut texts = Vec::new();
    for path in paths {
        let at = |source| Error::Read {
            path: path.display().to_string(),
            source,
        };
        if path == Path::new("-") {
            let mut text = Vec::new();
            std::io::stdin()
                .read_to_end(&mut text)
                .map_err(|source| Error::Read {
                    path: "standard input".into(),
                    source,
                })?;
            texts.push(("standard input".to_owned(), text));
        } else if path.is_dir() {
            let mut files: Vec<PathBuf> = std::fs::read_dir(path)
                .and_then(|entries| entries.map(|entry| entry.map(|e| e.path())).collect())
                .map_err(at)?;
            files.retain(|file| {
                let extension = file.extension().and_then(|e| e.to_str());
                matches!(extension, Some("yaml" | "yml" | "json"))
            });
            files.sort();
            if files.is_empty() {
                return Err(Error::Empty(path.display().to_string()));
            }
            for file in files {
                let name = file.display().to_string();
                let text = std::fs::read(&file).map_err(|source| Error::Read {
                    path: name.clone(),
                    source,
                })?;
                texts.push((name, text));
            }
        } else {
            texts.push((path.display().to_string(), std::fs::read(path).map_err(at)?));
        }
    }
    let mut problems = Vec::new();
    let mut values = Vec::new();
    for (file, bytes) in &texts {
        match std::str::from_utf8(bytes) {
            Ok(text) => parse(file, text, &mut values, &mut problems),
            Err(error) => {
                let before = &bytes[..error.valid_up_to()];
                let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
                problems.push(format!("{file}:{line}: this is no text in UTF-8"));
            }
        }
    }
    let objects = check(values, &mut problems);
    if problems.is_empty() {
        Ok(objects)
    } else {
        Err(Error::Wrong(problems))
    }
}

/// Splits a stream into its documents, each with the line it begins (from 0).
/// The marker `---` at the start of a line can be nothing else in YAML.
fn documents(text: &str) -> Vec<(usize, String)> {
    let mut documents = vec![(0, String::new())];
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\n', '\r']));
        match marker {
            // What stands behind the marker belongs to the new document; the
            // blanks keep the columns right.
            Some(rest) => documents.push((number, format!("   {rest}"))),
            None => {
                if let Some((_, document)) = documents.last_mut() {
                    document.push_str(line);
                }
            }
        }
    }
    documents
}

fn parse(file: &str, text: &str, values: &mut Vec<(Source, Value)>, problems: &mut Vec<String>) {
    for (first_line, document) in documents(text) {
        let is_content = |line: &&str| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with('#') && !line.starts_with('%') && line != "..."
        };
        let Some(skipped) = document.lines().position(|line| is_content(&line)) else {
            continue;
        };
        let source = Source {
            file: file.to_owned(),
            line: first_line + skipped + 1,
        };
        match serde_saphyr::from_str_with_options::<Value>(&document, options()) {
            Ok(Value::Null) => {}
            Ok(value) => values.push((source, value)),
            Err(error) => {
                let place = match error.location() {
                    Some(at) => {
                        let line = first_line as u64 + at.line();
                        format!("{file}:{line}:{}", at.column())
                    }
                    None => source.to_string(),
                };
                problems.push(format!("{place}: {}", first_line_of(&error.to_string())));
            }
        }
    }
}

/// YAML as kubectl reads it: `y`, `on` and the like are text, and a leading
/// zero means octal, as in `defaultMode: 0644`.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        strict_booleans: true,
        legacy_octal_numbers: true,
    }
}

/// The parser's message without the excerpt and the place, which is said already.
fn first_line_of(message: &str) -> String {
    let line = message
        .lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("broken YAML");
    let line = line.trim().trim_start_matches("error: ");
    match line
        .strip_prefix("line ")
        .and_then(|rest| rest.split_once(": "))
    {
        Some((_, rest)) => rest.to_owned(),
        None => line.split(" at line ").next().unwrap_or(line).to_owned(),
    }
}

fn check(values: Vec<(Source, Value)>, problems: &mut Vec<String>) -> Vec<Object> {
    let values: Vec<(Source, Value)> = values
        .into_iter()
        .flat_map(|(source, value)| flatten(source, value))
        .collect();
    let custom = custom_kinds(values.iter().map(|(_, value)| value));
    let mut objects = Vec::new();
    let mut seen: BTreeMap<(GroupVersionKind, String, String), Source> = BTreeMap::new();
    for (source, value) in values {
        match object(source, value, &custom) {
            Ok(object) => {
                let key = (
                    object.kind.clone(),
                    object.namespace().to_owned(),
                    object.name().to_owned(),
                );
                if let Some(first) = seen.get(&key) {
                    problems.push(format!(
                        "{}: {} is there already, at {first}; take one away or rename it",
                        object.source,
                        object.title()
                    ));
                } else {
                    seen.insert(key, object.source.clone());
                    objects.push(object);
                }
            }
            Err(mut wrong) => problems.append(&mut wrong),
        }
    }
    // Whatever others need comes first; otherwise the order is the writer's.
    objects.sort_by_key(|object| match object.kind.kind.as_str() {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        "ServiceAccount" | "ConfigMap" | "Secret" => 2,
        "Service" => 3,
        _ => 4,
    });
    objects
}

/// The items of a `List`, which may hold lists again.
fn flatten(source: Source, mut value: Value) -> Vec<(Source, Value)> {
    let is_list = value.get("kind").and_then(Value::as_str) == Some("List");
    match value.get_mut("items").filter(|_| is_list) {
        Some(Value::Array(items)) => std::mem::take(items)
            .into_iter()
            .flat_map(|item| flatten(source.clone(), item))
            .collect(),
        _ => vec![(source, value)],
    }
}

/// The kinds that CustomResourceDefinitions among the objects add.
fn custom_kinds<'a>(
    values: impl Iterator<Item = &'a Value>,
) -> BTreeMap<GroupVersionKind, Resource> {
    #[derive(Deserialize)]
    struct Definition {
        kind: String,
        spec: Spec,
    }
    #[derive(Deserialize)]
    struct Spec {
        group: String,
        names: Names,
        scope: String,
        versions: Vec<Version>,
    }
    #[derive(Deserialize)]
    struct Names {
        kind: String,
        plural: String,
    }
    #[derive(Deserialize)]
    struct Version {
        name: String,
    }
    let mut kinds = BTreeMap::new();
    for value in values {
        let Ok(definition) = Definition::deserialize(value) else {
            continue;
        };
        if definition.kind != "CustomResourceDefinition" {
            continue;
        }
        let spec = definition.spec;
        for version in spec.versions {
            kinds.insert(
                GroupVersionKind::new(&spec.group, version.name, &spec.names.kind),
                Resource {
                    plural: spec.names.plural.clone(),
                    namespaced: spec.scope == "Namespaced",
                },
            );
        }
    }
    kinds
}

fn object(
    source: Source,
    mut value: Value,
    custom: &BTreeMap<GroupVersionKind, Resource>,
) -> Result<Object, Vec<String>> {
    let one = |problem: String| vec![format!("{source}: {problem}")];
    if !value.is_object() {
        return Err(one(
            "a manifest is an object with apiVersion, kind and metadata".into(),
        ));
    }
    let required = |field: &str| {
        value
            .get(field)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
            .ok_or_else(|| one(format!("{field} is missing; every object says what it is")))
    };
    let kind_name = required("kind")?;
    let api_version = required("apiVersion")?;
    let (group, version) = api_version
        .split_once('/')
        .unwrap_or(("", api_version.as_str()));
    let kind = GroupVersionKind::new(group, version, &kind_name);
    let builtin = Schemas::builtin();
    let resource = builtin
        .kind(&kind)
        .filter(|known| !known.plural.is_empty())
        .map(|known| Resource {
            plural: known.plural.to_owned(),
            namespaced: known.namespaced,
        })
        .or_else(|| custom.get(&kind).cloned())
        .ok_or_else(|| one(unknown_kind(&api_version, &kind_name)))?;

    let name = text(&value, "/metadata/name");
    if name.is_empty() && text(&value, "/metadata/generateName").is_empty() {
        return Err(one(format!("{kind_name}: metadata.name is missing")));
    }
    if name.is_empty() {
        return Err(one(format!(
            "{kind_name}: metadata.generateName is for create only; give it a metadata.name"
        )));
    }
    let mut problems = Vec::new();
    let title = format!("{kind_name} {name}");
    for error in builtin.type_errors(&kind, &value) {
        problems.push(format!("{source}: {title}: {error}"));
    }
    for field in builtin.unknown_fields(&kind, &value) {
        problems.push(format!("{source}: {title}: unknown field {field}"));
    }
    if resource.namespaced {
        let metadata = value
            .get_mut("metadata")
            .and_then(Value::as_object_mut)
            .map_or_else(|| Err(one(format!("{title}: metadata is no object"))), Ok)?;
        fill_namespace(metadata);
    } else if !text(&value, "/metadata/namespace").is_empty() {
        problems.push(format!(
            "{source}: {title}: a {kind_name} lives in no namespace; take metadata.namespace away"
        ));
    }
    if problems.is_empty() {
        Ok(Object {
            source,
            kind,
            resource,
            value,
        })
    } else {
        Err(problems)
    }
}

fn fill_namespace(metadata: &mut Map<String, Value>) {
    let given = metadata.get("namespace").and_then(Value::as_str);
    if given.is_none_or(str::is_empty) {
        metadata.insert("namespace".into(), "default".into());
    }
}

fn unknown_kind(api_version: &str, kind: &str) -> String {
    let elsewhere: Vec<String> = Schemas::builtin()
        .kinds()
        .iter()
        .filter(|known| known.gvk.kind == kind && !known.plural.is_empty())
        .map(|known| known.gvk.api_version())
        .collect();
    if elsewhere.is_empty() {
        format!(
            "the lab has no kind {kind:?} in {api_version}; check the spelling, or add its \
             CustomResourceDefinition to the manifests"
        )
    } else {
        format!(
            "the lab has no {kind} in {api_version}, but in {}",
            elsewhere.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn load_text(text: &str) -> Result<Vec<Object>, Vec<String>> {
        let mut problems = Vec::new();
        let mut values = Vec::new();
        parse("file.yaml", text, &mut values, &mut problems);
        let objects = check(values, &mut problems);
        if problems.is_empty() {
            Ok(objects)
        } else {
            Err(problems)
        }
    }

    #[test]
    fn documents_are_objects_with_their_lines() {
        let objects = load_text(
            "# a comment
---
apiVersion: v1
kind: Pod
metadata: {name: a}
spec: {containers: [{name: c, image: i}]}
---
# nothing here
--- {apiVersion: v1, kind: Namespace, metadata: {name: n}}
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: ConfigMap
  metadata: {name: m, namespace: n}
  data: {key: \"---\", text: |
    ---
    }
",
        );
        // A marker inside braces is broken YAML; it must not be swallowed.
        assert!(objects.is_err());
        let objects = load_text(
            "---
apiVersion: v1
kind: Pod
metadata: {name: a}
--- {apiVersion: v1, kind: Namespace, metadata: {name: n}}
---

apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: m, namespace: n}}
",
        )
        .unwrap();
        let seen: Vec<String> = objects
            .iter()
            .map(|o| format!("{} {} {:?}", o.title(), o.source, o.namespace()))
            .collect();
        assert_eq!(
            seen,
            [
                "Namespace n file.yaml:5 \"\"",
                "ConfigMap n/m file.yaml:8 \"n\"",
                "Pod a file.yaml:2 \"default\"",
            ]
        );
    }

    #[rstest]
    #[case("a: b\n  c: d\n", "file.yaml:2:")]
    #[case(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a\n---\nkind: x\n",
        "file.yaml:"
    )]
    #[case("apiVersion: v1\nkind: Pod\nmetadata:\n\tname: a\n", "file.yaml:4:")]
    #[case("just text\n", "file.yaml:1: a manifest is an object")]
    #[case("\n\nkind: Pod\n", "file.yaml:3: apiVersion is missing")]
    #[case(
        "apiVersion: v1\nmetadata: {name: a}\n",
        "file.yaml:1: kind is missing"
    )]
    #[case(
        "apiVersion: v1\nkind: Pot\nmetadata: {name: a}\n",
        "file.yaml:1: the lab has no kind \"Pot\" in v1; check the spelling"
    )]
    #[case(
        "apiVersion: v1\nkind: Deployment\nmetadata: {name: a}\n",
        "file.yaml:1: the lab has no Deployment in v1, but in apps/v1"
    )]
    #[case(
        "apiVersion: v1\nkind: Pod\n",
        "file.yaml:1: Pod: metadata.name is missing"
    )]
    #[case(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}\n",
        "lives in no namespace"
    )]
    #[case(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{nam: x}]}\n",
        "Pod a: unknown field spec.containers[0].nam"
    )]
    #[case(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: 80}\n",
        "Service a: spec.ports"
    )]
    #[case(
        "{apiVersion: v1, kind: Pod, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: default}}\n",
        "file.yaml:3: Pod a is there already, at file.yaml:1"
    )]
    fn what_is_wrong_is_said_with_its_place(#[case] text: &str, #[case] part: &str) {
        let problems = load_text(text).unwrap_err();
        assert!(
            problems.iter().any(|problem| problem.contains(part)),
            "{problems:?}"
        );
    }

    #[test]
    fn a_definition_makes_its_kind_known() {
        let objects = load_text(
            "apiVersion: example.dev/v1
kind: Widget
metadata: {name: w}
spec: {anything: goes}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.dev}
spec:
  group: example.dev
  scope: Cluster
  names: {kind: Widget, plural: widgets}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]
",
        )
        .unwrap();
        assert_eq!(objects[0].kind.kind, "CustomResourceDefinition");
        assert_eq!(objects[1].resource.plural, "widgets");
        assert_eq!(objects[1].namespace(), "");
    }

    #[test]
    fn a_folder_is_read_in_order_and_a_missing_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, object: &str| {
            let text = format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {object}}}}}");
            std::fs::write(folder.path().join(name), text).unwrap();
        };
        write("b.yml", "b");
        write("a.yaml", "a");
        write("c.txt", "c");
        let names: Vec<String> = load(&[folder.path().to_owned()])
            .unwrap()
            .iter()
            .map(|object| object.name().to_owned())
            .collect();
        assert_eq!(names, ["a", "b"]);
        let error = load(&["/no/such.yaml".into()]).unwrap_err().to_string();
        assert!(
            error.contains("cannot read /no/such.yaml: No such file"),
            "{error}"
        );
        std::fs::write(folder.path().join("d.yaml"), b"a\n\xff\n").unwrap();
        let error = load(&[folder.path().to_owned()]).unwrap_err().to_string();
        assert!(
            error.contains("d.yaml:2: this is no text in UTF-8"),
            "{error}"
        );
    }
}
