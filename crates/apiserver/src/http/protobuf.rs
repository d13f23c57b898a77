//! Bodies in Kubernetes' protobuf form, as newer `kubectl create KIND`
//! commands send them; answers are JSON all the same.
//!
//! Known are the kinds that these commands make. What has a field that is not
//! known here is refused rather than stored without it. Field numbers: the
//! `generated.proto` files of k8s.io/api and k8s.io/apimachinery.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// The type of a field.
#[derive(Clone, Copy)]
enum Type {
    Text,
    Number,
    Flag,
    /// A map of strings.
    Texts,
    /// A map of bytes; base64 in JSON.
    Blobs,
    Message(&'static [Field]),
    /// A message whose fields stand in the parent in JSON.
    Inline(&'static [Field]),
    Time,
    IntOrString,
    /// Not read: the server writes it itself.
    Ignored,
}

/// A field of a message.
#[derive(Clone, Copy)]
struct Field {
    number: u64,
    name: &'static str,
    kind: Type,
    repeated: bool,
    /// Given even if zero: the absent value means something else.
    pointer: bool,
}

const fn one(number: u64, name: &'static str, kind: Type) -> Field {
    Field {
        number,
        name,
        kind,
        repeated: false,
        pointer: false,
    }
}

const fn many(number: u64, name: &'static str, kind: Type) -> Field {
    Field {
        repeated: true,
        ..one(number, name, kind)
    }
}

const fn pointer(number: u64, name: &'static str, kind: Type) -> Field {
    Field {
        pointer: true,
        ..one(number, name, kind)
    }
}

use Type::{Blobs, Flag, Ignored, Inline, IntOrString, Message, Number, Text, Texts, Time};

const OWNER: &[Field] = &[
    one(1, "kind", Text),
    one(3, "name", Text),
    one(4, "uid", Text),
    one(5, "apiVersion", Text),
    pointer(6, "controller", Flag),
    pointer(7, "blockOwnerDeletion", Flag),
];
const META: &[Field] = &[
    one(1, "name", Text),
    one(2, "generateName", Text),
    one(3, "namespace", Text),
    one(4, "selfLink", Text),
    one(5, "uid", Text),
    one(6, "resourceVersion", Text),
    one(7, "generation", Number),
    one(8, "creationTimestamp", Time),
    one(9, "deletionTimestamp", Time),
    pointer(10, "deletionGracePeriodSeconds", Number),
    one(11, "labels", Texts),
    one(12, "annotations", Texts),
    many(13, "ownerReferences", Message(OWNER)),
    many(14, "finalizers", Text),
];
const NAMESPACE: &[Field] = &[
    one(1, "metadata", Message(META)),
    one(2, "spec", Message(&[many(1, "finalizers", Text)])),
    one(3, "status", Ignored),
];
const CONFIG_MAP: &[Field] = &[
    one(1, "metadata", Message(META)),
    one(2, "data", Texts),
    one(3, "binaryData", Blobs),
    pointer(4, "immutable", Flag),
];
const SECRET: &[Field] = &[
    one(1, "metadata", Message(META)),
    one(2, "data", Blobs),
    one(3, "type", Text),
    one(4, "stringData", Texts),
    pointer(5, "immutable", Flag),
];
const NAMED: &[Field] = &[one(1, "name", Text)];
const SERVICE_ACCOUNT: &[Field] = &[
    one(1, "metadata", Message(META)),
    many(2, "secrets", Message(&[one(3, "name", Text)])),
    many(3, "imagePullSecrets", Message(NAMED)),
    pointer(4, "automountServiceAccountToken", Flag),
];
const SERVICE_PORT: &[Field] = &[
    one(1, "name", Text),
    one(2, "protocol", Text),
    one(3, "port", Number),
    one(4, "targetPort", IntOrString),
    one(5, "nodePort", Number),
    one(6, "appProtocol", Text),
];
const SERVICE_SPEC: &[Field] = &[
    many(1, "ports", Message(SERVICE_PORT)),
    one(2, "selector", Texts),
    one(3, "clusterIP", Text),
    one(4, "type", Text),
    many(5, "externalIPs", Text),
    one(7, "sessionAffinity", Text),
    one(8, "loadBalancerIP", Text),
    many(9, "loadBalancerSourceRanges", Text),
    one(10, "externalName", Text),
    one(11, "externalTrafficPolicy", Text),
    one(12, "healthCheckNodePort", Number),
    one(13, "publishNotReadyAddresses", Flag),
    one(17, "ipFamilyPolicy", Text),
    many(18, "clusterIPs", Text),
    many(19, "ipFamilies", Text),
    pointer(20, "allocateLoadBalancerNodePorts", Flag),
    one(21, "loadBalancerClass", Text),
    one(22, "internalTrafficPolicy", Text),
    one(23, "trafficDistribution", Text),
];
const SERVICE: &[Field] = &[
    one(1, "metadata", Message(META)),
    one(2, "spec", Message(SERVICE_SPEC)),
    one(3, "status", Ignored),
];
const CONTAINER: &[Field] = &[
    one(1, "name", Text),
    one(2, "image", Text),
    many(3, "command", Text),
    many(4, "args", Text),
    one(5, "workingDir", Text),
    many(
        6,
        "ports",
        Message(&[
            one(1, "name", Text),
            one(2, "hostPort", Number),
            one(3, "containerPort", Number),
            one(4, "protocol", Text),
            one(5, "hostIP", Text),
        ]),
    ),
    many(
        7,
        "env",
        Message(&[one(1, "name", Text), one(2, "value", Text)]),
    ),
    one(13, "terminationMessagePath", Text),
    one(14, "imagePullPolicy", Text),
    one(16, "stdin", Flag),
    one(17, "stdinOnce", Flag),
    one(18, "tty", Flag),
    one(20, "terminationMessagePolicy", Text),
];
const POD_SPEC: &[Field] = &[
    many(2, "containers", Message(CONTAINER)),
    one(3, "restartPolicy", Text),
    pointer(4, "terminationGracePeriodSeconds", Number),
    pointer(5, "activeDeadlineSeconds", Number),
    one(6, "dnsPolicy", Text),
    one(7, "nodeSelector", Texts),
    one(8, "serviceAccountName", Text),
    one(9, "serviceAccount", Text),
    one(10, "nodeName", Text),
    one(11, "hostNetwork", Flag),
    one(12, "hostPID", Flag),
    one(13, "hostIPC", Flag),
    many(15, "imagePullSecrets", Message(NAMED)),
    one(16, "hostname", Text),
    one(17, "subdomain", Text),
    one(19, "schedulerName", Text),
    many(20, "initContainers", Message(CONTAINER)),
];
const SELECTOR: &[Field] = &[
    one(1, "matchLabels", Texts),
    many(
        2,
        "matchExpressions",
        Message(&[
            one(1, "key", Text),
            one(2, "operator", Text),
            many(3, "values", Text),
        ]),
    ),
];
const DEPLOYMENT_SPEC: &[Field] = &[
    pointer(1, "replicas", Number),
    one(2, "selector", Message(SELECTOR)),
    one(
        3,
        "template",
        Message(&[
            one(1, "metadata", Message(META)),
            one(2, "spec", Message(POD_SPEC)),
        ]),
    ),
    one(
        4,
        "strategy",
        Message(&[
            one(1, "type", Text),
            one(
                2,
                "rollingUpdate",
                Message(&[
                    one(1, "maxUnavailable", IntOrString),
                    one(2, "maxSurge", IntOrString),
                ]),
            ),
        ]),
    ),
    one(5, "minReadySeconds", Number),
    pointer(6, "revisionHistoryLimit", Number),
    one(7, "paused", Flag),
    pointer(9, "progressDeadlineSeconds", Number),
];
const DEPLOYMENT: &[Field] = &[
    one(1, "metadata", Message(META)),
    one(2, "spec", Message(DEPLOYMENT_SPEC)),
    one(3, "status", Ignored),
];
const INGRESS_BACKEND: &[Field] = &[one(
    4,
    "service",
    Message(&[
        one(1, "name", Text),
        one(
            2,
            "port",
            Message(&[one(1, "name", Text), one(2, "number", Number)]),
        ),
    ]),
)];
const INGRESS_PATH: &[Field] = &[
    one(1, "path", Text),
    one(2, "backend", Message(INGRESS_BACKEND)),
    one(3, "pathType", Text),
];
const INGRESS_RULE: &[Field] = &[
    one(1, "host", Text),
    one(
        2,
        "",
        Inline(&[one(
            1,
            "http",
            Message(&[many(1, "paths", Message(INGRESS_PATH))]),
        )]),
    ),
];
const INGRESS_SPEC: &[Field] = &[
    one(1, "defaultBackend", Message(INGRESS_BACKEND)),
    many(
        2,
        "tls",
        Message(&[many(1, "hosts", Text), one(2, "secretName", Text)]),
    ),
    many(3, "rules", Message(INGRESS_RULE)),
    one(4, "ingressClassName", Text),
];
const INGRESS: &[Field] = &[
    one(1, "metadata", Message(META)),
    one(2, "spec", Message(INGRESS_SPEC)),
    one(3, "status", Ignored),
];
const DELETE_OPTIONS: &[Field] = &[
    pointer(1, "gracePeriodSeconds", Number),
    one(
        2,
        "preconditions",
        Message(&[one(1, "uid", Text), one(2, "resourceVersion", Text)]),
    ),
    pointer(3, "orphanDependents", Flag),
    one(4, "propagationPolicy", Text),
    many(5, "dryRun", Text),
];
const EVICTION: &[Field] = &[
    one(1, "metadata", Message(META)),
    one(2, "deleteOptions", Message(DELETE_OPTIONS)),
];

/// The fields of a kind.
fn kind(api_version: &str, kind: &str) -> Option<&'static [Field]> {
    Some(match (api_version, kind) {
        ("v1", "Namespace") => NAMESPACE,
        ("v1", "ConfigMap") => CONFIG_MAP,
        ("v1", "Secret") => SECRET,
        ("v1", "ServiceAccount") => SERVICE_ACCOUNT,
        ("v1", "Service") => SERVICE,
        ("apps/v1", "Deployment") => DEPLOYMENT,
        ("networking.k8s.io/v1", "Ingress") => INGRESS,
        ("policy/v1", "Eviction") => EVICTION,
        (_, "DeleteOptions") => DELETE_OPTIONS,
        _ => return None,
    })
}

/// Reads a body of media type `application/vnd.kubernetes.protobuf`. None if
/// it is not understood as a whole.
pub(super) fn decode(body: &[u8]) -> Option<Value> {
    // The envelope `Unknown`: type (1) and the object's bytes (2).
    let envelope = body.strip_prefix(b"k8s\0")?;
    let (mut api_version, mut name, mut raw) = ("", "", None);
    for item in Items(envelope) {
        match item? {
            (1, Wire::Bytes(meta)) => {
                for item in Items(meta) {
                    match item? {
                        (1, Wire::Bytes(b)) => api_version = std::str::from_utf8(b).ok()?,
                        (2, Wire::Bytes(b)) => name = std::str::from_utf8(b).ok()?,
                        _ => return None,
                    }
                }
            }
            (2, Wire::Bytes(b)) => raw = Some(b),
            // Content encoding and type; empty.
            (3 | 4, Wire::Bytes([])) => {}
            _ => return None,
        }
    }
    let mut object = message(kind(api_version, name)?, raw?)?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), name.into());
    Some(object.into())
}

enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message as they stand on the wire; an item is none when
/// the bytes make no sense.
struct Items<'a>(&'a [u8]);

impl<'a> Items<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn item(&mut self) -> Option<(u64, Wire<'a>)> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                let (bytes, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Wire::Bytes(bytes)
            }
            _ => return None,
        };
        Some((tag >> 3, wire))
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Option<(u64, Wire<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let item = self.item();
        if item.is_none() {
            // Nothing after a fault can be trusted.
            self.0 = &[];
        }
        Some(item)
    }
}

fn message(fields: &[Field], bytes: &[u8]) -> Option<Map<String, Value>> {
    let mut object = Map::new();
    for item in Items(bytes) {
        let (number, wire) = item?;
        let Some(field) = fields.iter().find(|f| f.number == number) else {
            // Empty messages are written for fields that are not set.
            if matches!(wire, Wire::Bytes([]) | Wire::Number(0)) {
                continue;
            }
            return None;
        };
        match (field.kind, &wire) {
            (Ignored, _) => {}
            (Inline(fields), Wire::Bytes(b)) => object.extend(message(fields, b)?),
            (Texts | Blobs, Wire::Bytes(b)) => {
                let (key, value) = entry(field.kind, b)?;
                let map = object.entry(field.name).or_insert_with(|| json!({}));
                map.as_object_mut()?.insert(key, value);
            }
            _ => {
                let value = value(field.kind, wire)?;
                if field.repeated {
                    let list = object.entry(field.name).or_insert_with(|| json!([]));
                    list.as_array_mut()?.push(value);
                } else if field.pointer || !is_zero(&value) {
                    object.insert(field.name.into(), value);
                }
            }
        }
    }
    Some(object)
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_i64() == Some(0),
        Value::String(s) => s.is_empty(),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
    }
}

fn text(bytes: &[u8]) -> Option<Value> {
    Some(std::str::from_utf8(bytes).ok()?.into())
}

/// An entry of a map: key (1) and value (2).
fn entry(kind: Type, bytes: &[u8]) -> Option<(String, Value)> {
    let (mut key, mut value) = (String::new(), &[][..]);
    for item in Items(bytes) {
        match item? {
            (1, Wire::Bytes(b)) => key = std::str::from_utf8(b).ok()?.to_owned(),
            (2, Wire::Bytes(b)) => value = b,
            _ => return None,
        }
    }
    let value = match kind {
        Blobs => STANDARD.encode(value).into(),
        _ => text(value)?,
    };
    Some((key, value))
}

fn value(kind: Type, wire: Wire<'_>) -> Option<Value> {
    match (kind, wire) {
        (Text, Wire::Bytes(b)) => text(b),
        // Negative numbers are written as their two's complement.
        (Number, Wire::Number(n)) => Some(n.cast_signed().into()),
        (Flag, Wire::Number(n)) => Some((n != 0).into()),
        (Message(fields), Wire::Bytes(b)) => Some(message(fields, b)?.into()),
        (Time, Wire::Bytes(b)) => time(b),
        (IntOrString, Wire::Bytes(b)) => int_or_string(b),
        _ => None,
    }
}

/// Seconds (1) since 1970; nanoseconds (2) are not kept in metadata.
fn time(bytes: &[u8]) -> Option<Value> {
    let mut seconds = None;
    for item in Items(bytes) {
        match item? {
            (1, Wire::Number(n)) => seconds = Some(n.cast_signed()),
            (2, Wire::Number(_)) => {}
            _ => return None,
        }
    }
    let Some(seconds) = seconds else {
        return Some(Value::Null);
    };
    let time = jiff::Timestamp::from_second(seconds).ok()?;
    Some(time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into())
}

/// Type (1; 1 for a string), number (2), string (3).
fn int_or_string(bytes: &[u8]) -> Option<Value> {
    let (mut is_text, mut number, mut words) = (false, 0, Value::from(""));
    for item in Items(bytes) {
        match item? {
            (1, Wire::Number(n)) => is_text = n == 1,
            (2, Wire::Number(n)) => number = n.cast_signed(),
            (3, Wire::Bytes(b)) => words = text(b)?,
            _ => return None,
        }
    }
    Some(if is_text { words } else { number.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `kubectl create deployment a --image=x` sends it.
    const DEPLOYMENT_BODY: &[u8] = b"k8s\x00\n\x15\n\x07apps/v1\x12\nDeployment\x12\xa2\x01\n\"\n\x01a\x12\x00\x1a\x07default\"\x00*\x002\x008\x00B\x00Z\x08\n\x03app\x12\x01a\x12n\x08\x01\x12\n\n\x08\n\x03app\x12\x01a\x1aV\n\x1a\n\x00\x12\x00\x1a\x00\"\x00*\x002\x008\x00B\x00Z\x08\n\x03app\x12\x01a\x128\x12\x1a\n\x01x\x12\x01x*\x00B\x00j\x00r\x00\x80\x01\x00\x88\x01\x00\x90\x01\x00\xa2\x01\x00\x1a\x002\x00B\x00J\x00R\x00X\x00`\x00h\x00\x82\x01\x00\x8a\x01\x00\x9a\x01\x00\xc2\x01\x00\"\x02\n\x00(\x008\x00\x1a\x0c\x08\x00\x10\x00\x18\x00 \x00(\x008\x00\x1a\x00\"\x00";

    #[test]
    fn what_kubectl_sends_is_read() {
        assert_eq!(
            decode(DEPLOYMENT_BODY).unwrap(),
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "a", "namespace": "default", "labels": {"app": "a"}},
                "spec": {
                    "replicas": 1,
                    "selector": {"matchLabels": {"app": "a"}},
                    "template": {
                        "metadata": {"labels": {"app": "a"}},
                        "spec": {"containers": [{"name": "x", "image": "x"}]},
                    },
                },
            })
        );
    }

    #[test]
    fn what_is_cut_short_or_unknown_is_refused() {
        for end in 0..DEPLOYMENT_BODY.len() - 6 {
            assert!(decode(&DEPLOYMENT_BODY[..end]).is_none(), "{end}");
        }
        // A ConfigMap with a field 9 that has something in it.
        assert!(decode(b"k8s\0\n\x0f\n\x02v1\x12\tConfigMap\x12\x03\x4a\x01x").is_none());
        assert!(decode(b"k8s\0\n\x0a\n\x02v1\x12\x04Node\x12\x00").is_none());
    }
}
