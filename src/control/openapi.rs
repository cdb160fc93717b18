//! The OpenAPI document: paths from the routes' own descriptions, shapes from `schemas.json` beside this file.
//!
//! Shapes are written down rather than derived: what goes over the wire is made by the types of other rooms, which
//! know nothing of this document. Tests hold both together.

use serde_json::{Value, json};
use utoipa::openapi::OpenApi;

const SCHEMAS: &str = include_str!("schemas.json");

const DESCRIPTION: &str = "The admin API of a bootstorm server. Over TCP every request but /healthz, /readyz and \
                           /metrics needs a bearer token; over the Unix socket the peer's user is checked. Every \
                           refusal is problem+json with a one-word code.";

/// Adds what holds for every route.
pub(super) fn complete(paths: OpenApi) -> Value {
    let mut document = serde_json::to_value(paths).expect("a document is JSON");
    document["info"] = json!({
        "title": "bootstorm", "version": env!("CARGO_PKG_VERSION"), "description": DESCRIPTION,
        "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
    });
    let schemas: Value = serde_json::from_str(SCHEMAS).expect("the schemas are JSON: a test reads them");
    document["components"] = json!({
        "schemas": schemas,
        "securitySchemes": {
            "token": {
                "type": "http", "scheme": "bearer",
                "description": "bst-ID-SECRET, made by `bootstorm token add`; its role is read, operate or admin",
            },
        },
    });
    let refusal = json!({
        "description": "A refusal",
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
    });
    for path in document["paths"].as_object_mut().into_iter().flat_map(|paths| paths.values_mut()) {
        for operation in path.as_object_mut().into_iter().flat_map(|path| path.values_mut()) {
            // Names of handlers are unique within their resource.
            let name = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let id = format!("{}.{}", name(&operation["tags"][0]), name(&operation["operationId"]));
            operation["operationId"] = json!(id);
            if let Some(responses) = operation["responses"].as_object_mut() {
                responses.insert("default".into(), refusal.clone());
            }
        }
    }
    document
}
