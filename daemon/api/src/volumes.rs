//! `/volumes`: this engine has no volumes yet, and says exactly that.

use axum::extract::Path;
use axum::response::Response;
use serde_json::json;
use skiff_core::Error;

use crate::answer;
use crate::error::Answer;
use crate::extract::Params;

/// `docker volume ls`.
pub(crate) async fn list(params: Params) -> Answer {
    params
        .filters()?
        .check_names(&["dangling", "driver", "label", "name"])?;
    Ok(answer::ok(&json!({"Volumes": [], "Warnings": null})))
}

/// `docker volume inspect`.
pub(crate) async fn inspect(Path(name): Path<String>) -> Answer {
    Err(Error::not_found(format!("get {name}: no such volume")).into())
}

/// `docker volume rm`; with `force` a missing volume is no error.
pub(crate) async fn remove(
    Path(name): Path<String>,
    params: Params,
) -> Result<Response, crate::error::ApiError> {
    if params.flag("force") {
        return Ok(answer::no_content());
    }
    Err(Error::not_found(format!("get {name}: no such volume")).into())
}
