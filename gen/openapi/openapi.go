// Package openapi holds the OpenAPI description of the REST door, generated from the protos.
package openapi

import _ "embed"

//go:embed authsvc.swagger.json
var document string

// Document gives the OpenAPI 2.0 description as JSON.
func Document() []byte { return []byte(document) }
