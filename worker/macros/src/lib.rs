//! `#[handlers("room")]` and `#[remotes("player")]`: turn an `impl` block into a component of a worker.
//!
//! The attributes leave the methods as they are and add an implementation of `worker::Component` that registers each
//! public async method with `App::on` or `App::remote`. They know no types: whether a method fits is decided by the
//! bounds of those functions, so the errors are the ones that a plain function would get.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Attribute, Error, FnArg, Ident, ImplItem, ImplItemFn, ItemImpl, LitStr, Receiver, ReceiverKind,
    Visibility,
};

/// Registers the public async methods of an `impl` block as handlers of the named service.
///
/// The argument is the service's name as clients write it. A method's name loses its underscores, which is what
/// Pitaya's usual lower-casing makes of a Go name: in `#[handlers("room")]` of a server of type `room`,
/// `pub async fn set_session_data` answers `room.room.setsessiondata`. Methods that are not `pub` are left alone.
///
/// * `#[concurrent]` on a method lets the messages of one session run at the same time there.
/// * `#[remote]` registers a method for other servers instead of for clients.
/// * `on_start`, `on_ready`, `before_shutdown` and `on_shutdown` are hooks of the application's life, not handlers;
///   `on_bind`, `after_bind` and `on_close` are hooks of the life of sessions.
/// * `before` and `after` run around the handlers of this service.
#[proc_macro_attribute]
pub fn handlers(
    arguments: proc_macro::TokenStream,
    item: proc_macro::TokenStream,
) -> proc_macro::TokenStream {
    let service = syn::parse_macro_input!(arguments as LitStr);
    let block = syn::parse_macro_input!(item as ItemImpl);
    expand(Callers::Clients, &service, block).unwrap_or_else(Error::into_compile_error).into()
}

/// Registers the public async methods of an `impl` block as remotes of the named service: what other servers call, and
/// clients cannot.
///
/// Names become routes as with [`macro@handlers`]: in `#[remotes("player")]` of a server of type `metagame`,
/// `pub async fn add_gold` answers `metagame.player.addgold`. Methods that are not `pub` are left alone.
///
/// `on_start`, `on_ready`, `before_shutdown` and `on_shutdown` are hooks of the application's life, not remotes; so are
/// `on_bind`, `after_bind` and `on_close`, of the life of sessions. A type that answers clients as well takes
/// `#[handlers]`, with `#[remote]` on the methods for servers.
#[proc_macro_attribute]
pub fn remotes(
    arguments: proc_macro::TokenStream,
    item: proc_macro::TokenStream,
) -> proc_macro::TokenStream {
    let service = syn::parse_macro_input!(arguments as LitStr);
    let block = syn::parse_macro_input!(item as ItemImpl);
    expand(Callers::Servers, &service, block).unwrap_or_else(Error::into_compile_error).into()
}

/// Who calls the methods of a block that are not marked otherwise.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Callers {
    Clients,
    Servers,
}

/// Methods that are functions of the application's builder of the same name.
const HOOKS: [&str; 7] =
    ["on_start", "on_ready", "before_shutdown", "on_shutdown", "on_bind", "after_bind", "on_close"];

/// Methods that run around the handlers of their service.
const AROUND: [&str; 2] = ["before", "after"];

fn expand(callers: Callers, service: &LitStr, mut block: ItemImpl) -> syn::Result<TokenStream> {
    let name = service.value();
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic() && b != b'.' && b != b'/') {
        return Err(Error::new(service.span(), "the service's name is one part of a route"));
    }
    if let Some((path, _)) = &block.trait_ {
        return Err(Error::new_spanned(
            path,
            "handlers and remotes are methods of the type itself",
        ));
    }
    let mut calls = Vec::new();
    for item in &mut block.items {
        if let ImplItem::Fn(method) = item
            && let Some(call) = register_method(callers, &name, method)?
        {
            calls.push(call);
        }
    }
    if calls.is_empty() {
        return Err(Error::new(service.span(), "no `pub async fn` with `&self` to register"));
    }
    let component = &block.self_ty;
    let (generics, _, bounds) = block.generics.split_for_impl();
    Ok(quote! {
        #block

        impl #generics ::worker::Component for #component #bounds {
            fn register(self, app: ::worker::App) -> ::worker::App {
                let component = ::std::sync::Arc::new(self);
                app #(#calls)*
            }
        }
    })
}

/// The builder call for one method, or none when it is not public. Takes our marker attributes off the method.
fn register_method(
    callers: Callers,
    service: &str,
    method: &mut ImplItemFn,
) -> syn::Result<Option<TokenStream>> {
    let is_concurrent = take_marker(&mut method.attrs, "concurrent");
    let is_remote = take_marker(&mut method.attrs, "remote") || callers == Callers::Servers;
    if !matches!(method.vis, Visibility::Public(_)) {
        return Ok(None);
    }
    if is_remote && is_concurrent {
        let text = "remotes are concurrent anyway: only the messages of a session have an order";
        return Err(Error::new_spanned(&method.sig.ident, text));
    }
    // `pub` marks a handler here; whether others could name its types, or it waits for anything, is not the point.
    method.attrs.push(syn::parse_quote!(
        #[allow(unreachable_pub, private_interfaces, clippy::unused_async)]
    ));
    let signature = &method.sig;
    if signature.asyncness.is_none() {
        return Err(Error::new_spanned(signature.fn_token, "handlers and remotes are `async fn`s"));
    }
    let mut inputs = signature.inputs.iter();
    let is_shared =
        |receiver: &Receiver| matches!(receiver.kind, ReceiverKind::Reference(.., None));
    if !matches!(inputs.next(), Some(FnArg::Receiver(receiver)) if is_shared(receiver)) {
        return Err(Error::new_spanned(
            &signature.ident,
            "handlers and remotes take `&self` first",
        ));
    }
    let types: Vec<_> = inputs
        .filter_map(|argument| match argument {
            FnArg::Typed(typed) => Some(&typed.ty),
            FnArg::Receiver(_) => None,
        })
        .collect();
    let names: Vec<Ident> = (0..types.len()).map(|at| format_ident!("argument_{at}")).collect();
    let ident = &signature.ident;
    let handler = quote! {{
        let component = ::std::sync::Arc::clone(&component);
        move |#(#names: #types),*| {
            let component = ::std::sync::Arc::clone(&component);
            async move { component.#ident(#(#names),*).await }
        }
    }};
    let method_name = ident.to_string();
    if HOOKS.contains(&method_name.as_str()) {
        return Ok(Some(quote!(.#ident(#handler))));
    }
    if AROUND.contains(&method_name.as_str()) {
        if callers == Callers::Servers {
            let text = "this name is for functions around handlers; App::before_remote and \
                        App::after_remote take those around remotes";
            return Err(Error::new_spanned(ident, text));
        }
        let register = format_ident!("{method_name}_in");
        return Ok(Some(quote!(.#register(#service, #handler))));
    }
    let route = format!("{service}.{}", method_name.replace('_', "").to_lowercase());
    let register = if is_remote { quote!(remote) } else { quote!(on) };
    let concurrent = is_concurrent.then(|| quote!(.concurrent(#route)));
    Ok(Some(quote!(.#register(#route, #handler) #concurrent)))
}

fn take_marker(attributes: &mut Vec<Attribute>, name: &str) -> bool {
    let before = attributes.len();
    attributes.retain(|attribute| !attribute.path().is_ident(name));
    attributes.len() < before
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(source: &str) -> String {
        expanded_for(Callers::Clients, source)
    }

    fn expanded_for(callers: Callers, source: &str) -> String {
        let block = syn::parse_str(source).unwrap();
        let service = LitStr::new("room", proc_macro2::Span::call_site());
        match expand(callers, &service, block) {
            Ok(tokens) => tokens.to_string(),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn a_method_becomes_a_route_in_lower_case_without_underscores() {
        let source =
            "impl Room { pub async fn set_session_data(&self, s: Session) -> R { todo() } }";
        assert!(expanded(source).contains("\"room.setsessiondata\""));
    }

    #[test]
    fn private_methods_are_not_registered() {
        let source = "impl Room { async fn helper(&self) {} pub async fn join(&self) {} }";
        assert!(!expanded(source).contains("room.helper"));
    }

    #[test]
    fn markers_are_taken_off_and_hooks_are_no_routes() {
        let source = "impl Room { #[concurrent] pub async fn chat(&self) {} #[remote] pub async fn spend(&self) {} pub async fn on_start(&self) {} }";
        let text = expanded(source);
        assert!(text.contains(". concurrent (\"room.chat\")"), "{text}");
        assert!(text.contains(". remote (\"room.spend\""), "{text}");
        assert!(text.contains(". on_start (") && !text.contains("room.onstart"), "{text}");
        assert!(!text.contains("# [concurrent]") && !text.contains("# [remote]"), "{text}");
    }

    #[test]
    fn functions_around_handlers_belong_to_their_service() {
        let source = "impl Room { pub async fn before(&self) {} pub async fn after(&self) {} pub async fn on_close(&self) {} }";
        let text = expanded(source);
        assert!(
            text.contains(". before_in (\"room\"") && text.contains(". after_in (\"room\""),
            "{text}"
        );
        assert!(text.contains(". on_close (") && !text.contains("room.before"), "{text}");
    }

    #[test]
    fn all_methods_of_remotes_are_for_servers_and_hooks_stay_hooks() {
        let source = "impl Player { pub async fn add_gold(&self) {} async fn helper(&self) {} pub async fn on_ready(&self) {} }";
        let text = expanded_for(Callers::Servers, source);
        assert!(text.contains(". remote (\"room.addgold\""), "{text}");
        assert!(text.contains(". on_ready (") && !text.contains(". on ("), "{text}");
        assert!(!text.contains("room.helper") && !text.contains("room.onready"), "{text}");
    }

    #[test]
    fn remotes_have_no_order_and_nothing_around_them() {
        let refused = |method: &str| {
            let source = format!("impl Player {{ {method} }}");
            expanded_for(Callers::Servers, &source).starts_with("error:")
        };
        assert!(refused("#[concurrent] pub async fn spend(&self) {}"));
        assert!(
            refused("pub async fn before(&self) {}") && refused("pub async fn after(&self) {}")
        );
        assert!(refused("async fn private(&self) {}"), "nothing to register");
        let marked = "impl Room { #[concurrent] #[remote] pub async fn spend(&self) {} }";
        assert!(expanded(marked).starts_with("error:"));
    }

    #[test]
    fn methods_that_cannot_be_handlers_are_refused() {
        assert!(expanded("impl Room { pub fn join(&self) {} }").starts_with("error:"));
        assert!(expanded("impl Room { pub async fn join(self) {} }").starts_with("error:"));
        assert!(expanded("impl Room { async fn join(&self) {} }").starts_with("error:"));
        assert!(expanded("impl Component for Room { fn x(&self) {} }").starts_with("error:"));
    }
}
