//! Engine errors as JavaScript sees them.

use mapram_engine::{Error, Result};
use napi::Env;
use napi::bindgen_prelude::{Either, JsObjectValue, JsValue, Undefined};

use crate::convert::number;

/// What a function throws, or a promise is rejected with: a JavaScript `Error` whose `code` is the stable one (`E_...`), and that
/// has the `path` of the file concerned, the `offset` in it and the operating system's reason as its `cause`, if they are known.
fn javascript_error(env: &Env, error: &Error) -> napi::Result<napi::Error> {
    let path = error.path.as_ref().map(|path| path.to_string_lossy().into_owned());
    let cause = error.cause.as_ref().map(ToString::to_string);
    let mut object = env.create_error(napi::Error::from_reason(error.message.clone()))?;
    object.set_named_property("code", error.kind.to_string())?;
    object.set_named_property("path", or_undefined(path))?;
    object.set_named_property("offset", or_undefined(error.offset.map(number)))?;
    object.set_named_property("cause", or_undefined(cause))?;
    Ok(napi::Error::from(object.to_unknown()))
}

/// Where it is absent, JavaScript would otherwise get null.
pub(crate) fn or_undefined<T>(value: Option<T>) -> Either<T, Undefined> {
    value.map_or(Either::B(()), Either::A)
}

/// Turns an engine result into one that a synchronous function can return.
pub(crate) fn or_throw<T>(env: &Env, result: Result<T>) -> napi::Result<T> {
    result.map_err(|error| javascript_error(env, &error).unwrap_or_else(|failure| failure))
}
