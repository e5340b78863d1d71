//! How names, targets and protocols are written.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::spec::name::MAX_NAME;
use crate::spec::{HostName, InstanceId, ProcessName, Protocol, TokenName};
use crate::state::{Role, Target};

/// A name, by its pattern.
fn name(pattern: &str, example: &str) -> RefOr<Schema> {
    let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern));
    text.examples([serde_json::json!(example)]).into()
}

fn plain_name() -> String {
    format!("[a-z0-9][a-z0-9_-]{{0,{}}}", MAX_NAME - 1)
}

impl PartialSchema for ProcessName {
    fn schema() -> RefOr<Schema> {
        name(&format!("^{}$", plain_name()), "zone")
    }
}

impl PartialSchema for TokenName {
    fn schema() -> RefOr<Schema> {
        name(&format!("^{}$", plain_name()), "deploy")
    }
}

impl PartialSchema for Role {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["read", "operate", "admin"])).into()
    }
}

impl PartialSchema for HostName {
    fn schema() -> RefOr<Schema> {
        // Not all digits.
        name(&format!("^(?=[0-9]*[a-z_-]){}$", plain_name()), "alpha")
    }
}

impl PartialSchema for InstanceId {
    fn schema() -> RefOr<Schema> {
        let host = format!("(?=[0-9]*[a-z_-]){}", plain_name());
        name(&format!("^{}\\.((0|[1-9][0-9]{{0,17}})|{host})$", plain_name()), "zone.3")
    }
}

impl PartialSchema for Protocol {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["udp", "tcp"])).into()
    }
}

impl PartialSchema for Target {
    fn schema() -> RefOr<Schema> {
        let all = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["all"]));
        let one = |key: &str, schema: RefOr<Schema>| {
            ObjectBuilder::new()
                .schema_type(SchemaType::new(Type::Object))
                .property(key, schema)
                .required(key)
                .additional_properties(Some(AdditionalProperties::FreeForm(false)))
        };
        let target = OneOfBuilder::new().item(all);
        target.item(one("process", ProcessName::schema())).item(one("instance", InstanceId::schema())).into()
    }
}

macro_rules! named {
    ($($name:ident),*) => {$(
        impl ToSchema for $name {}
    )*};
}

named!(ProcessName, HostName, InstanceId, Protocol, Role, Target, TokenName);
