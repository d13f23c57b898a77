//! Columns that a custom resource definition asks for.

use super::{Printer, column_definition, jsonpath, list, name, since};
use serde_json::{Value, json};

/// A printer from a list of `additionalPrinterColumns`.
pub(super) fn printer(printer_columns: &Value) -> Printer {
    let text = |column: &Value, key: &str| column[key].as_str().unwrap_or_default().to_owned();
    let mut columns = vec![column_definition("Name", "string", "name", "", 0)];
    let mut paths = Vec::new();
    for column in list(printer_columns) {
        columns.push(column_definition(
            &text(column, "name"),
            &text(column, "type"),
            &text(column, "format"),
            &text(column, "description"),
            column["priority"]
                .as_i64()
                .and_then(|value| i32::try_from(value).ok())
                .unwrap_or(0),
        ));
        paths.push((
            text(column, "type"),
            jsonpath::parse(&text(column, "jsonPath")),
        ));
    }
    Printer {
        columns,
        cells: Box::new(move |object, now| {
            let mut cells = vec![name(object)];
            for (kind, path) in &paths {
                let found = path
                    .as_ref()
                    .map(|path| jsonpath::find(path, object))
                    .unwrap_or_default();
                cells.push(match (found.as_slice(), kind.as_str()) {
                    ([], _) => Value::Null,
                    ([first, ..], "date") => json!(since(first, now)),
                    ([first, ..], "integer" | "number" | "boolean") => (*first).clone(),
                    (all, _) => json!(
                        all.iter()
                            .map(|value| plain(value))
                            .collect::<Vec<_>>()
                            .join(" ")
                    ),
                });
            }
            cells
        }),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}
