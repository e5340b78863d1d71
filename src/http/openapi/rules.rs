//! What holds for all routes, so that no handler has to say it: refusals, tags, bounds.

use std::collections::BTreeMap;

use utoipa::Modify;
use utoipa::Number;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{
    AdditionalProperties, AnyOfBuilder, ArrayItems, Object, ObjectBuilder, Schema, SchemaType, Type,
};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, Ref, RefOr, Required};

/// What holds for all routes.
pub(super) struct ForAll;

impl Modify for ForAll {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        components.schemas.values_mut().for_each(bound);
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
        let bearer = bearer.description(Some("`bigbrother token create`; not needed over the Unix socket"));
        components.add_security_scheme("token", SecurityScheme::Http(bearer.build()));
        document.security =
            Some(vec![SecurityRequirement::new("token", [""; 0]), SecurityRequirement::default()]);
        let schemas = components.schemas.clone();
        for (path, item) in &mut document.paths.paths {
            let methods = [("get", &mut item.get), ("post", &mut item.post), ("delete", &mut item.delete)];
            for (method, operation) in methods {
                let Some(operation) = operation else { continue };
                operation.operation_id = Some(identifier(method, path));
                given(operation);
                refusals(operation);
                if method == "get" {
                    reading(operation, &schemas);
                }
            }
        }
    }
}

/// A name for the functions of generated clients: `get_directory_id_leader`.
fn identifier(method: &str, path: &str) -> String {
    let words = path.split(['/', '{', '}', '-', '.']).filter(|word| !word.is_empty() && *word != "v1");
    [method].into_iter().chain(words).collect::<Vec<_>>().join("_")
}

/// What is not given is left out, never null.
fn given(operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        let RefOr::T(parameter) = parameter else { continue };
        if let Some(RefOr::T(Schema::Object(object))) = &mut parameter.schema
            && let SchemaType::Array(types) = &object.schema_type
            && let Some(known) = types.iter().find(|one| **one != Type::Null).cloned()
        {
            object.schema_type = SchemaType::Type(known);
        }
        if let Some(RefOr::T(Schema::OneOf(either))) = &parameter.schema {
            let named = either.items.iter().find(|one| matches!(one, RefOr::Ref(_))).cloned();
            parameter.schema = named.or_else(|| parameter.schema.clone());
        }
        parameter.schema.iter_mut().for_each(bound);
    }
}

/// Whole numbers have the bounds of their formats.
fn bound(schema: &mut RefOr<Schema>) {
    let RefOr::T(schema) = schema else { return };
    match schema {
        Schema::Object(object) => {
            object.properties.values_mut().for_each(bound);
            if let Some(AdditionalProperties::RefOr(values)) = object.additional_properties.as_deref_mut() {
                bound(values);
            }
            let most = match object.format.as_ref().map(|format| serde_json::json!(format)) {
                Some(format) if format == "int32" => i32::MAX as usize,
                Some(format) if format == "int64" => i64::MAX as usize,
                _ => return,
            };
            // A format says nothing of signs.
            let most = if object.minimum.is_some() { 2 * most + 1 } else { most };
            object.maximum.get_or_insert(Number::UInt(most));
        }
        Schema::OneOf(either) => either.items.iter_mut().for_each(bound),
        Schema::AllOf(all) => all.items.iter_mut().for_each(bound),
        _ => {}
    }
}

/// Those that any route of its kind may answer with.
fn refusals(operation: &mut Operation) {
    let takes_body = operation.request_body.is_some();
    let takes_something = takes_body || operation.parameters.as_ref().is_some_and(|all| !all.is_empty());
    let refusals = [
        ("400", "it cannot be read", takes_something),
        ("401", "no token, or none that holds", true),
        ("403", "not with the role of this token, or a web page of others asks", true),
        ("413", "the body is too large", takes_body),
        ("415", "a body of another type", takes_body),
        ("429", "too often: `Retry-After` says when", true),
        ("500", "the agent failed", true),
        (
            "503",
            "not now (starting, busy, no quorum, a host that does not answer): `Retry-After` says when",
            true,
        ),
        ("504", "it took too long, or nobody knows what came of it; a change may still be carried out", true),
    ];
    let known = &mut operation.responses.responses;
    for (status, why, _) in refusals.into_iter().filter(|(_, _, applies)| *applies) {
        let problem = ResponseBuilder::new().description(why);
        known.entry(status.to_owned()).or_insert_with(|| {
            problem.content("application/problem+json", of(Ref::from_schema_name("Problem"))).into()
        });
    }
    // Wherever a handler names a problem.
    for (status, response) in known.iter_mut().filter(|(status, _)| status.as_str() >= "400") {
        let RefOr::T(response) = response else { continue };
        if let Some(content) = response.content.shift_remove("application/json") {
            response.content.insert("application/problem+json".to_owned(), content);
        }
        if ["429", "503"].contains(&status.as_str()) {
            let retry = HeaderBuilder::new().schema(Some(Object::with_type(Type::Integer)));
            response
                .headers
                .insert("retry-after".to_owned(), retry.description(Some("in seconds")).build().into());
        }
    }
}

fn of(schema: Ref) -> Content {
    Content::new(Some(schema))
}

/// How new an answer is, and what was seen already.
fn reading(operation: &mut Operation, schemas: &BTreeMap<String, RefOr<Schema>>) {
    let text = || Object::with_type(Type::String);
    let takes = |operation: &Operation, name: &str| {
        operation.parameters.iter().flatten().any(|one| matches!(one, RefOr::T(one) if one.name == name))
    };
    let tagged = takes(operation, "consistent");
    let pages = takes(operation, "limit");
    let shape = list_of(operation).and_then(|shape| schemas.get(shape));
    let fields = shape.map(fields_pattern);
    if let Some(RefOr::T(Schema::Object(row))) = shape.filter(|_| takes(operation, "fields")) {
        let mut row = row.clone();
        row.required.clear();
        shorten_rows(operation, row);
    }
    for parameter in operation.parameters.iter_mut().flatten() {
        let RefOr::T(parameter) = parameter else { continue };
        if parameter.name == "fields" {
            let names = ObjectBuilder::new().schema_type(Type::String).pattern(fields.clone());
            parameter.schema = Some(names.into());
        }
    }
    let Some(RefOr::T(answer)) = operation.responses.responses.get_mut("200") else { return };
    let mut note = |name: &str, schema: Object, what: &str| {
        let header = HeaderBuilder::new().schema(Some(schema)).description(Some(what)).build();
        answer.headers.insert(name.to_owned(), header.into());
    };
    note("bigbrother-index", Object::with_type(Type::Integer), "the state index of the copy that answered");
    if pages {
        note("link", text(), "the next page, if there is one");
    }
    if tagged {
        note("etag", text(), "to be shown as `If-None-Match`");
        let seen = ResponseBuilder::new().description("it is as it was seen").build();
        operation.responses.responses.insert("304".to_owned(), seen.into());
        let header = ParameterBuilder::new().name("If-None-Match").parameter_in(ParameterIn::Header);
        let header = header.required(Required::False).schema(Some(text()));
        let header = header.description(Some("the `ETag` of what was seen: 304 while that is so")).build();
        operation.parameters.get_or_insert_default().push(header.into());
    }
}

/// The shape of the elements of which the answer is a list.
fn list_of(operation: &Operation) -> Option<&str> {
    let RefOr::T(answer) = operation.responses.responses.get("200")? else { return None };
    let RefOr::T(content) = answer.content.get("application/json")? else { return None };
    let RefOr::T(Schema::Array(list)) = content.schema.as_ref()? else { return None };
    match &list.items {
        ArrayItems::RefOrSchema(items) => match items.as_ref() {
            RefOr::Ref(shape) => shape.ref_location.rsplit('/').next(),
            RefOr::T(_) => None,
        },
        ArrayItems::False => None,
    }
}

/// A row is whole, or has only the fields that were asked for.
fn shorten_rows(operation: &mut Operation, short: Object) {
    let Some(RefOr::T(answer)) = operation.responses.responses.get_mut("200") else { return };
    let Some(RefOr::T(content)) = answer.content.get_mut("application/json") else { return };
    let Some(RefOr::T(Schema::Array(list))) = &mut content.schema else { return };
    if let ArrayItems::RefOrSchema(items) = &mut list.items {
        let whole = items.as_ref().clone();
        let short = ObjectBuilder::from(short).description(Some("only the fields that `fields` names"));
        **items = AnyOfBuilder::new().item(whole).item(short).into();
    }
}

/// Names of a shape's fields, with commas between.
fn fields_pattern(shape: &RefOr<Schema>) -> String {
    let RefOr::T(Schema::Object(shape)) = shape else { return String::new() };
    let names = shape.properties.keys().map(String::as_str).collect::<Vec<_>>().join("|");
    format!("^({names})(,({names}))*$")
}
