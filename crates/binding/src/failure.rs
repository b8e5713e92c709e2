//! Engine errors as JavaScript sees them.

use std::error::Error as _;

use mapram_engine::Error;
use napi::bindgen_prelude::{JsObjectValue, JsValue, ToNapiValue};
use napi::{Env, Status};
use napi_derive::napi;

/// Why a job or a call failed.
#[napi(object)]
#[derive(Debug, Clone)]
pub struct NativeError {
    /// Stable code, `E_...`.
    pub code: String,
    /// One sentence, without the cause.
    pub message: String,
    /// The file concerned.
    pub path: Option<String>,
    /// Byte offset in that file.
    pub offset: Option<i64>,
    /// The operating system's reason.
    pub cause: Option<String>,
}

impl From<Error> for NativeError {
    fn from(error: Error) -> Self {
        Self {
            code: error.kind.to_string(),
            message: error.message.clone(),
            path: error.path.as_ref().map(|path| path.to_string_lossy().into_owned()),
            offset: error.offset.and_then(|offset| i64::try_from(offset).ok()),
            cause: error.source().map(ToString::to_string),
        }
    }
}

impl NativeError {
    /// The error to throw from a synchronous function: a JavaScript `Error` with the same properties.
    pub(crate) fn throwable(self, env: &Env) -> napi::Error {
        self.object(env).unwrap_or_else(|error| error)
    }

    fn object(self, env: &Env) -> napi::Result<napi::Error> {
        let mut object = env.create_error(napi::Error::new(Status::GenericFailure, self.message))?;
        object.set_named_property("code", self.code)?;
        set_if_some(&mut object, "path", self.path)?;
        set_if_some(&mut object, "offset", self.offset)?;
        set_if_some(&mut object, "cause", self.cause)?;
        Ok(napi::Error::from(object.to_unknown()))
    }
}

fn set_if_some<T: ToNapiValue>(
    object: &mut napi::bindgen_prelude::Object<'_>,
    name: &str,
    value: Option<T>,
) -> napi::Result<()> {
    value.map_or(Ok(()), |value| object.set_named_property(name, value))
}

/// Turns an engine result into one that a synchronous function can return.
pub(crate) fn or_throw<T>(env: &Env, result: mapram_engine::Result<T>) -> napi::Result<T> {
    result.map_err(|error| NativeError::from(error).throwable(env))
}
