//! Names of pod templates: short hashes that are safe in labels and names.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde::Serialize;

/// Letters and digits that spell no words and are not mistaken for each other.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// FNV-1a of 32 bits.
fn fnv(bytes: &[u8], seed: u32) -> u32 {
    bytes.iter().fold(seed, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

/// A hash of the value's JSON; `collisions` gives another one for the same
/// value when the name it gave is taken.
pub(crate) fn of<T: Serialize>(value: &T, collisions: i32) -> String {
    // Templates are plain data; what cannot be written is hashed as nothing.
    let json = serde_json::to_vec(value).unwrap_or_default();
    let mut hash = fnv(&json, 0x811c_9dc5);
    if collisions > 0 {
        hash = fnv(&collisions.to_be_bytes(), hash);
    }
    hash.to_string()
        .bytes()
        .map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()]))
        .collect()
}

/// Whether two templates are the same but for a label.
pub(crate) fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec, label: &str) -> bool {
    without_label(a, label) == without_label(b, label)
}

/// The template without a label.
pub(crate) fn without_label(template: &PodTemplateSpec, label: &str) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(metadata) = &mut template.metadata {
        if let Some(labels) = &mut metadata.labels {
            labels.remove(label);
            if labels.is_empty() {
                metadata.labels = None;
            }
        }
        metadata.creation_timestamp = None;
    }
    template
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_stable_and_a_collision_changes_it() {
        assert_eq!(of(&"a", 0), of(&"a", 0));
        assert_ne!(of(&"a", 0), of(&"b", 0));
        assert_ne!(of(&"a", 0), of(&"a", 1));
        assert!(of(&"a", 0).bytes().all(|c| ALPHABET.contains(&c)));
    }
}
